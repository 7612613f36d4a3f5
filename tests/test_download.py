"""Downloads from a server on this machine: whole and right, or not there at all."""

from __future__ import annotations

import gzip
import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest

from spatlib import BackendError, DataError
from spatlib.data import NAMES, as_dataset, load_data
from spatlib.files import MNIST, SHA256, SIZES, URLS

from . import files
from .test_errors import check
from .test_formats import HTML

NAME, ARCHIVE = "cifar-10-binary.tar.gz", files.archive(files.cifar_files(10))
ZIPPED = [f"{name}.gz" for name in MNIST]


class Server(ThreadingHTTPServer):
    """Serves ``content``; ``asked`` lists the path of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.stop_at: int | None = None  # the connection is cut before this byte
        self.endless = False  # without a length, until the other side hangs up

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.asked.append(name)
        if name not in self.server.content:
            self.send_error(404)
            return
        whole = self.server.content[name]
        self.send_response(200)
        if not self.server.endless:
            self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[: self.server.stop_at])
        with suppress(OSError):
            while self.server.endless:
                self.wfile.write(whole)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Holds CIFAR-10 and MNIST, whose addresses and sums are replaced by its own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files.expect_small_cifar(monkeypatch)
    with Server() as server:
        server.content = {NAME: ARCHIVE} | {
            f"{name}.gz": gzip.compress(raw) for name, raw in files.mnist_files().items()
        }
        for name, content in server.content.items():
            known = hashlib.sha256(content).hexdigest()
            monkeypatch.setitem(SHA256, name.removesuffix(".gz"), known)
            monkeypatch.setitem(SIZES, name.removesuffix(".gz"), len(content))
        for name in URLS:
            monkeypatch.setitem(URLS, name, server.address)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def cifar10(folder: Path | None) -> np.ndarray:
    x: np.ndarray = as_dataset(load_data("cifar10", folder), channels_first=True).train[0]
    return x


def right(x: np.ndarray) -> bool:
    return np.array_equal(x, files.pixels(files.TRAIN, 3, 32, 32))


def test_the_right_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert right(cifar10(folder))
    assert right(cifar10(folder))
    assert server.asked == [NAME]
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert (folder / NAME).read_bytes() == ARCHIVE


def test_mnist_is_downloaded_to_where_torchvision_has_it(server: Server, tmp_path: Path) -> None:
    first, second = (load_data("mnist", tmp_path) for _ in range(2))
    assert sorted(server.asked) == sorted(ZIPPED)
    assert {path.name for path in (tmp_path / "MNIST" / "raw").iterdir()} == set(ZIPPED)
    for data in (first, second):
        assert np.array_equal(data.train[1], files.labels(files.TRAIN, 10))
        assert np.array_equal(data.test[0][..., 0], files.pixels(files.TEST, 28, 28))


def test_without_a_dir_it_is_the_cache_directory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    assert right(cifar10(None))
    assert (tmp_path / "spatlib" / NAME).read_bytes() == ARCHIVE


@pytest.mark.parametrize(
    "content", [HTML, ARCHIVE[:-1], ARCHIVE + b"\1"], ids=["page", "short", "long"]
)
def test_a_file_with_another_hash_is_refused_and_not_kept(
    content: bytes, server: Server, tmp_path: Path
) -> None:
    server.content[NAME] = content
    found = check(DataError, server.address + NAME, lambda: cifar10(tmp_path))
    assert str(tmp_path / NAME) in str(found)
    assert "does not match the known hash" in str(found)
    assert "by hand" in str(found)
    assert list(tmp_path.iterdir()) == []
    server.content[NAME] = ARCHIVE
    assert right(cifar10(tmp_path))


def test_a_download_without_end_is_stopped(server: Server, tmp_path: Path) -> None:
    server.endless = True
    found = check(DataError, "does not match the known hash", lambda: cifar10(tmp_path))
    assert str(tmp_path / NAME) in str(found)
    assert server.address + NAME in str(found)
    assert list(tmp_path.iterdir()) == []


def test_of_a_cut_connection_nothing_is_left(server: Server, tmp_path: Path) -> None:
    server.stop_at = len(ARCHIVE) // 2
    found = check(DataError, server.address + NAME, lambda: cifar10(tmp_path))
    assert str(tmp_path / NAME) in str(found)
    assert "try again" in str(found)
    assert list(tmp_path.iterdir()) == []
    server.stop_at = None
    assert right(cifar10(tmp_path))


def test_of_an_interrupted_download_nothing_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("urllib3.response.HTTPResponse.read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert right(cifar10(tmp_path))


def test_mnist_goes_on_with_the_files_that_are_missing(server: Server, tmp_path: Path) -> None:
    last = server.content.pop(ZIPPED[-1])
    found = check(DataError, "404", lambda: load_data("mnist", tmp_path))
    raw = tmp_path / "MNIST" / "raw"
    assert str(raw / ZIPPED[-1]) in str(found)
    assert {path.name for path in raw.iterdir()} == set(ZIPPED[:-1])
    server.content[ZIPPED[-1]] = last
    before = len(server.asked)
    assert len(load_data("mnist", tmp_path).test[1]) == files.TEST
    assert len(server.asked) == before + 1


@pytest.mark.parametrize("zipped", [True, False])
def test_files_from_elsewhere_are_not_mixed_with_downloaded_ones(
    zipped: bool, server: Server, tmp_path: Path
) -> None:
    own = files.write_mnist(tmp_path, zipped=zipped)
    missing = own / ("train-labels-idx1-ubyte" + ".gz" * zipped)
    missing.unlink()
    if zipped:  # one of another data set
        (own / ZIPPED[0]).write_bytes(gzip.compress(files.idx(files.pixels(9, 28, 28))))
    check(DataError, str(missing), lambda: load_data("mnist", tmp_path))
    assert server.asked == []


def test_files_that_are_there_need_neither_server_nor_pooch(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pooch", "requests"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / NAME).write_bytes(ARCHIVE)
    assert right(cifar10(tmp_path))
    assert server.asked == []


def test_without_pooch_the_error_says_what_to_install(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    for folder in (tmp_path, None):
        check(BackendError, "run pip install pooch", lambda folder=folder: cifar10(folder))


def test_no_connection_and_no_folder_are_reported(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    check(DataError, NAME, lambda: cifar10(blocked))
    monkeypatch.setitem(URLS, "cifar10", "http://127.0.0.1:1/")
    check(DataError, "http://127.0.0.1:1/", lambda: cifar10(tmp_path))
    assert list(tmp_path.iterdir()) == [blocked]


def test_addresses_are_secure_and_sums_are_whole() -> None:
    assert {"digits", *URLS} == set(NAMES)
    assert all(url.startswith("https://") and url.endswith("/") for url in URLS.values())
    assert all(len(bytes.fromhex(known)) == 32 for known in SHA256.values())
    assert set(SIZES) == set(SHA256) == {*MNIST, "cifar-10-binary.tar", "cifar-100-binary.tar"}
