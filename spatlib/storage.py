"""How the files of a run come to the disk and back: whole or not at all, with checksums."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from .errors import DataError, reading

Content = bytes | Iterable[bytes] | Path  # whole, in parts, or another file's, not written twice
SUMS = "spatlib.json"  # by name the SHA-256 of each file that is read again
NONE = sha256().hexdigest()  # of no content or file
PUT_BACK = "put the file of this run back"


@contextmanager
def naming(path: Path) -> Iterator[Path]:
    """An error of the disk inside, which may have no name, has that of the file."""
    try:
        yield path
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read(path: Path, spare: bool = False) -> bytes | None:
    """The content, None without a file; DataError unless the run wrote it, or it is ``spare``."""
    for _ in range(5):  # a training may replace it between our two looks
        with naming(path):
            content = path.read_bytes() if path.exists() else None
        found, sums = sha256(content or b"").hexdigest(), _sums(path.parent)
        if sums is None or found in sums.get(path.name, [NONE]) or (content is None and spare):
            return content
    what = "is missing" if content is None else "is damaged, or that of another run"
    raise DataError(f"{path} {what}: {PUT_BACK}{', or delete it' * spare}")


def replace(path: Path, content: Content, summed: bool = False) -> None:
    """Replace a file: a process killed here leaves the old content or the new, and both sums."""
    temporary = path.with_name(f".{path.name}.part")
    with naming(path):
        try:
            found = _put(temporary, content)
            if summed:  # of both contents, and of each other file one
                sums = {name: own[-1:] for name, own in (_sums(path.parent) or {}).items()}
                new = sums[content.name] if isinstance(content, Path) else [found]
                sums[path.name] = sums.get(path.name, [NONE]) + new
                replace(path.with_name(SUMS), json.dumps(sums).encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _put(path: Path, content: Content) -> str:
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


def _sums(directory: Path) -> dict[str, list[str]] | None:
    """The checksums, perhaps of an old content and a new one; None where none are known."""
    path = directory / SUMS
    with reading(path, PUT_BACK):
        if not path.exists():
            return None
        return {name: [*map(str, sums)] for name, sums in json.loads(path.read_bytes()).items()}
