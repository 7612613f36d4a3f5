"""Files of a run are written tensor by tensor, and one content only once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from spatlib.runs import BEST, CHECKPOINT, EMA, LAST, Run
from spatlib_torch import engine

from .running import train

pytestmark = pytest.mark.usefixtures("without_pictures")


class Kinds(nn.Module):
    """Tensors of many types and layouts, in an order in which they would not be aligned."""

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.arange(210.0).reshape(2, 3, 5, 7)
        kinds = [torch.bool, torch.uint8, torch.bfloat16, torch.int64, torch.float64]
        for i, kind in enumerate(kinds):
            self.register_buffer(f"b{i}", numbers[0, 0, 0, : 3 + i].to(kind))
        self.weight = nn.Parameter(numbers.to(memory_format=torch.channels_last))
        self.tied, self.one, self.none = self.weight, nn.Buffer(numbers[1, 1, 1, 1]), None
        self.part, self.empty = nn.Buffer(numbers[:, 1]), nn.Buffer(torch.empty(0, 4))
        self.same, self.alone = (nn.Buffer(numbers[0, 0, 0, :1].expand(n)) for n in (9, 1))


def test_every_tensor_is_written_as_the_library_does(tmp_path: Path) -> None:
    expected = {name: t.contiguous().clone() for name, t in Kinds().state_dict().items()}
    content = engine.weights(Kinds())
    assert content == save(expected, metadata={"spatlib": "null"})
    (tmp_path / "file").write_bytes(content)
    found = load_file(tmp_path / "file")  # by a memory map, in which tensors have to be aligned
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_no_part_of_a_file_is_larger_than_a_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, sizes = Run.write, dict[str, list[int]]()

    def noted(self: Run, name: str, content: Any) -> None:
        if not isinstance(content, bytes | Path):
            content = list(content)
            sizes[name] = [memoryview(part).nbytes for part in content[1:]]
        write(self, name, content)

    monkeypatch.setattr(Run, "write", noted)
    train(tmp_path)
    assert sizes.keys() == {LAST, EMA, CHECKPOINT}
    assert {max(found) for found in sizes.values()} == {4 * 5 * 8}


@pytest.mark.parametrize("links", [True, False])
def test_the_best_weights_are_written_once(
    links: bool, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, same = os.link, list[bool]()

    def refused(source: Path, target: Path) -> None:
        if not links:
            raise PermissionError(1, "Operation not permitted")
        link(source, target)

    monkeypatch.setattr(os, "link", refused)
    train(tmp_path, on_epoch=lambda row: same.append((tmp_path / BEST).samefile(tmp_path / EMA)))
    assert same[0] == links
    assert (tmp_path / BEST).read_bytes() == (own[1] / BEST).read_bytes()
    for name in (BEST, EMA, LAST):
        assert Run(tmp_path, resume=True).read(name)
