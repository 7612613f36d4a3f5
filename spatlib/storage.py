"""How the files of a run come to the disk: whole or not at all, with checksums."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from .errors import reading

Content = bytes | Iterable[bytes] | Path  # whole, in parts, or another file's, not written twice
PUT_BACK = "put the file of this run back"


@contextmanager
def naming(path: Path) -> Iterator[Path]:
    """An error of the disk inside, which may have no name, has that of the file."""
    try:
        yield path
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def put(path: Path, content: Content) -> str:
    """Write a new file, flushed to the disk; the SHA-256 of what was written."""
    found = sha256()
    path.unlink(missing_ok=True)  # of a killed writer, or a link to elsewhere
    if isinstance(content, Path):
        with suppress(OSError):  # of file systems without links
            os.link(content, path)
        content = b"" if path.exists() else content.read_bytes()
    with path.open("ab") as file:
        for part in [content] if isinstance(content, bytes) else content:
            file.write(part)
            found.update(part)
        file.flush()
        os.fsync(file.fileno())
    return found.hexdigest()


def sums_in(path: Path) -> dict[str, list[str]] | None:
    """By name the SHA-256 of each file that is read again; None where none are known."""
    with reading(path, PUT_BACK):
        if not path.exists():
            return None
        stored = json.loads(path.read_bytes()).items()
        return {name: [*map(str, sums)] for name, sums in stored}
