"""Official files, downloaded once, by pooch: checked by SHA-256, continued where cut off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .backends import load_extra
from .errors import DataError

TORONTO = "https://www.cs.toronto.edu/~kriz/"
# Where, and the SHA-256 of each file: those that TensorFlow Datasets publishes too.
SOURCES: dict[str, tuple[str, dict[str, str]]] = {
    "mnist": (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {  # its first home is closed
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "cifar10": (
        TORONTO,
        {
            "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        },
    ),
    "cifar100": (
        TORONTO,
        {
            "cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        },
    ),
}
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 14  # bytes; what came of the last one is lost when the connection is cut


def cache() -> Path:
    """The user's cache directory of this package."""
    return Path(load_extra("pooch").os_cache("spatlib"))


def is_official(name: str, path: Path) -> bool:
    """Whether the file is the one that would be downloaded under its name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SOURCES[name][1].get(path.name)


def fetch(name: str, folder: Path) -> None:
    """Bring the files of a data set into the folder; each is there whole or not at all.

    Raises:
        DataError: No connection, or not the known SHA-256.
        BackendError: pooch is not installed.
    """
    pooch = load_extra("pooch")
    address, hashes = SOURCES[name]
    for file, known in hashes.items():
        try:
            pooch.retrieve(
                address + file,
                f"sha256:{known}",
                file,
                folder,
                downloader=_Resuming(folder / f"{file}.part"),
            )
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise DataError(
                str(folder / file),
                expected=f"to download {address}{file}",
                received=f"{type(error).__name__}: {error}",
                fix="Try again, or put the file there by hand.",
            ) from error


class _Resuming:
    """A downloader for pooch that goes on where an interrupted one stopped."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output: str, _: Any) -> None:
        # output is this process' own: taking the part over, no other process can write to it.
        with suppress(FileNotFoundError):
            os.replace(self.part, output)
        try:
            with Path(output).open("ab") as file:
                for chunk in _rest(url, file):
                    file.write(chunk)
        except BaseException:  # Ctrl-C too
            if os.path.getsize(output):
                os.replace(output, self.part)
            raise


def _rest(url: str, file: Any) -> Iterator[bytes]:
    """What is missing at the end of the file; all, if the server does not know of ranges."""
    requests = load_extra("requests")  # comes with pooch
    begin = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing is missing: the hash will tell
            return
        response.raise_for_status()
        if response.status_code != 206:
            file.truncate(0)
        yield from response.iter_content(CHUNK)
