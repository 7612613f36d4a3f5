"""Downloads from a server on this machine: whole and right, or not there at all."""

from __future__ import annotations

import gzip
import hashlib
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest

from spatlib import BackendError, DataError
from spatlib.data import load
from spatlib.download import CHUNK, SOURCES

from . import files
from .test_errors import check
from .test_formats import HTML

NAME, ARCHIVE = files.archive(10, "bin")
HALF = len(ARCHIVE) // 2  # more than a chunk


class Server(ThreadingHTTPServer):
    """Serves ``content``; ``asked`` lists path and Range of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.stop_at: int | None = None  # the connection is cut before this byte
        self.ranges = True  # whether it knows of them

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.removeprefix("/"), self.headers.get("Range")
        self.server.asked.append((name, wanted))
        if name not in self.server.content:
            self.send_error(404)
            return
        whole = self.server.content[name]
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if not self.server.ranges:
            begin = 0
        elif wanted and begin >= len(whole):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(whole) - begin))
        self.end_headers()
        self.wfile.write(whole[begin : self.server.stop_at])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Holds CIFAR-10 and MNIST, whose addresses and sums are replaced by its own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        server.content = {NAME: ARCHIVE} | {
            f"{name}.gz": gzip.compress(raw) for name, raw in files.mnist_files().items()
        }
        for data, official in (("cifar10", [NAME]), ("mnist", SOURCES["mnist"][1])):
            sums = {name: hashlib.sha256(server.content[name]).hexdigest() for name in official}
            monkeypatch.setitem(SOURCES, data, (server.address, sums))
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def cifar10(folder: Path | None) -> np.ndarray:
    x: np.ndarray = load("cifar10", channels_first=True, data_dir=folder).train[0]
    return x


def right(x: np.ndarray) -> bool:
    return np.array_equal(x, files.pixels(files.TRAIN, 3, 32, 32))


def test_the_right_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert right(cifar10(folder))
    assert right(cifar10(folder))
    assert server.asked == [(NAME, None)]
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert (folder / NAME).read_bytes() == ARCHIVE


def test_mnist_is_downloaded_to_where_torchvision_has_it(server: Server, tmp_path: Path) -> None:
    first, second = (load("mnist", channels_first=True, data_dir=tmp_path) for _ in range(2))
    assert sorted(server.asked) == sorted((name, None) for name in SOURCES["mnist"][1])
    assert {path.name for path in (tmp_path / "MNIST" / "raw").iterdir()} == {
        name for name, _ in server.asked
    }
    for data in (first, second):
        assert np.array_equal(data.train[1], files.labels(files.TRAIN, 10))
        assert np.array_equal(data.test[0][:, 0], files.pixels(files.TEST, 28, 28))


def test_without_a_data_dir_it_is_the_cache_directory(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    assert right(cifar10(None))
    assert (tmp_path / "spatlib" / NAME).read_bytes() == ARCHIVE


@pytest.mark.parametrize(
    "content", [HTML, ARCHIVE[:-1], ARCHIVE + b"\0"], ids=["page", "short", "long"]
)
def test_a_file_with_another_hash_is_refused_and_not_kept(
    content: bytes, server: Server, tmp_path: Path
) -> None:
    server.content[NAME] = content
    found = check(DataError, server.address + NAME, lambda: cifar10(tmp_path))
    assert found.subject == str(tmp_path / NAME)
    assert hashlib.sha256(content).hexdigest() in str(found)
    assert "by hand" in found.fix
    assert list(tmp_path.iterdir()) == []
    server.content[NAME] = ARCHIVE
    assert right(cifar10(tmp_path))


def test_a_cut_connection_is_reported_and_the_next_call_goes_on(
    server: Server, tmp_path: Path
) -> None:
    server.stop_at = HALF
    found = check(DataError, server.address + NAME, lambda: cifar10(tmp_path))
    assert found.subject == str(tmp_path / NAME)
    assert not (tmp_path / NAME).exists()
    (part,) = (path.read_bytes() for path in tmp_path.iterdir())
    assert ARCHIVE.startswith(part)
    assert HALF - CHUNK < len(part) <= HALF
    server.stop_at = None
    assert right(cifar10(tmp_path))
    assert server.asked == [(NAME, None), (NAME, f"bytes={len(part)}-")]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.stop_at = False, HALF
    check(DataError, NAME, lambda: cifar10(tmp_path))
    server.stop_at = None
    assert right(cifar10(tmp_path))


@pytest.mark.parametrize(
    "kept", [ARCHIVE[:HALF] + b"?", b"?" * len(ARCHIVE)], ids=["half", "whole"]
)
def test_a_damaged_part_costs_one_call(kept: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(kept)
    check(DataError, "hash", lambda: cifar10(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert right(cifar10(tmp_path))


def test_a_whole_part_needs_no_more(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(ARCHIVE)
    assert right(cifar10(tmp_path))
    assert server.asked == [(NAME, f"bytes={len(ARCHIVE)}-")]


def test_an_interrupted_download_is_kept_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_then_interrupt(*_: object, **__: object) -> Iterator[bytes]:
        yield ARCHIVE[:HALF]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("requests.Response.iter_content", first_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            cifar10(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.part"]
    assert right(cifar10(tmp_path))
    assert server.asked[1] == (NAME, f"bytes={HALF}-")


def test_mnist_goes_on_with_the_files_that_are_missing(server: Server, tmp_path: Path) -> None:
    last = server.content.pop("t10k-labels-idx1-ubyte.gz")
    found = check(DataError, "404", lambda: load("mnist", channels_first=True, data_dir=tmp_path))
    raw = tmp_path / "MNIST" / "raw"
    assert found.subject == str(raw / "t10k-labels-idx1-ubyte.gz")
    assert len(list(raw.iterdir())) == 3
    server.content["t10k-labels-idx1-ubyte.gz"] = last
    before = len(server.asked)
    assert len(load("mnist", channels_first=True, data_dir=tmp_path).test[1]) == files.TEST
    assert len(server.asked) == before + 1


def test_files_from_elsewhere_are_not_mixed_with_downloaded_ones(
    server: Server, tmp_path: Path
) -> None:
    own = files.write_mnist(tmp_path, zipped=False)
    (own / "train-labels-idx1-ubyte").unlink()
    check(DataError, "train-labels", lambda: load("mnist", channels_first=True, data_dir=tmp_path))
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
        check(BackendError, "spatlib[data]", lambda folder=folder: cifar10(folder))


def test_no_connection_and_no_folder_are_reported(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    check(DataError, NAME, lambda: cifar10(blocked))
    monkeypatch.setitem(SOURCES, "cifar10", ("http://127.0.0.1:1/", SOURCES["cifar10"][1]))
    check(DataError, "http://127.0.0.1:1/", lambda: cifar10(tmp_path))


def test_addresses_are_secure_and_sums_are_whole() -> None:
    assert set(SOURCES) == {"mnist", "cifar10", "cifar100"}
    for address, sums in SOURCES.values():
        assert address.startswith("https://")
        assert address.endswith("/")
        assert all(len(bytes.fromhex(known)) == 32 for known in sums.values())
