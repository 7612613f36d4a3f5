"""``python -m spatlib`` and the command ``spatlib``."""

import sys
from importlib.util import find_spec


def main() -> int:
    """The command line, if tyro is installed."""
    if not find_spec("tyro"):
        print("spatlib needs tyro here: run pip install 'spatlib[cli]'", file=sys.stderr)
        return 2
    from .cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
