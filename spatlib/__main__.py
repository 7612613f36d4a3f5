"""``python -m spatlib`` and the command ``spatlib``."""

import os
import sys
import warnings
from importlib.util import find_spec


def main() -> int:
    """The command line, if tyro is installed."""
    for name in ("stdout", "stderr"):  # what is printed to one that was closed goes nowhere
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")  # a path may hold any bytes
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if find_spec("tyro"):
        from .cli import main as command

        return command()
    print("spatlib needs tyro here: run pip install tyro", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
