"""Bytes changed at random, and a watch on what a program does with them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# What no reader does: run something, unpickle, connect, or change files.
NEVER = ("os.exec", "os.fork", "os.system", "pickle.find_class", "socket.connect", "shutil.rmtree")
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "subprocess.Popen")
# Numbers at their ends, and the type code of NumPy's objects.
TELLING = [
    bytes(8),
    b"\xff" * 8,
    b"\x80" + bytes(7),
    b"\x7f" + b"\xff" * 7,
    b"-1",
    b"9" * 20,
    b"|O",
]
_seen: list[list[str]] = []


def _watch(event: str, _: Any) -> None:
    if _seen and event in NEVER + WRITES:
        _seen[-1].append(event)


sys.addaudithook(_watch)


def outcome(errors: Any, act: Callable[[], Any], *, writes: bool = False) -> tuple[Any, str | None]:
    """The result or the one line of such an error; nothing forbidden happens meanwhile.

    With ``writes`` files may be replaced (and git be asked for the commit).
    """
    _seen.append([])
    result, problem = None, None
    try:
        result = act()
    except errors as error:
        problem = str(error)
    finally:
        seen = _seen.pop()
    assert [event for event in seen if not (writes and event in WRITES)] == []
    assert len((problem or "").splitlines()) <= 1
    return result, problem


@st.composite
def mutated(draw: st.DrawFn, raw: bytes) -> bytes:
    """With one to four bits flipped, or spans overwritten, inserted, repeated or cut."""
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(raw), draw(st.sampled_from([64, 1024, len(raw)])))  # headers come first
        at = draw(st.integers(0, max(end - 1, 0)))
        kind = draw(st.sampled_from(["flip", "write", "insert", "repeat", "drop", "cut"]))
        if kind == "flip":
            new, length = bytes([(raw[at : at + 1] or b"\0")[0] ^ 1 << draw(st.integers(0, 7))]), 1
        elif kind in ("write", "insert"):
            new = draw(st.sampled_from(TELLING) | st.binary(min_size=1, max_size=16))
            length = len(new) if kind == "write" else 0
        else:
            length = draw(st.integers(1, 600)) if kind != "cut" else len(raw)
            new = 2 * raw[at : at + length] if kind == "repeat" else b""
        raw = raw[:at] + new + raw[at + length :]
    return raw
