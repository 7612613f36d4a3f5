"""``python -m spatlib`` and the command ``spatlib``."""

import os
import sys
from importlib.util import find_spec


def main() -> int:
    """The command line, if tyro is installed."""
    if sys.stdout is None:  # it was closed: what is printed goes nowhere
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if find_spec("tyro"):
        from .cli import main as command

        return command()
    print("spatlib needs tyro here: run pip install tyro", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
