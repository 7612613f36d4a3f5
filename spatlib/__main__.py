"""``python -m spatlib`` and the command ``spatlib``."""

from __future__ import annotations

import sys


def main() -> int:
    """The command line, if what it needs is installed."""
    try:
        from .cli import main as command
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        print(
            "spatlib: the command line needs tyro. Run: pip install 'spatlib[cli]'", file=sys.stderr
        )
        return 2
    return command()


if __name__ == "__main__":
    sys.exit(main())
