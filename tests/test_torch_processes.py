"""Several processes of torchrun train as one does; here two, which talk by Gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import spatlib
from spatlib import BackendError, ConfigError
from spatlib_torch import engine

from . import processes
from .once import once


def launched(what: str, place: Path, *options: str) -> None:
    """Two processes that write down what they find; each launch takes ten seconds."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *options,
    ]
    command = [*launcher, "-m", "tests.processes", what, str(place)]
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=300)
    assert done.returncode == 0, done.stderr


def both(what: str, place: Path) -> list[dict[str, Any]]:
    """What each process found."""
    return [json.loads(Path(place, f"{what}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both processes left what they found."""
    what = "trained_alike,trained_together,shared_out,troubled,left"
    return once(tmp_path_factory, "processes", partial(launched, what))


def test_two_processes_compute_what_one_does(place: Path) -> None:
    found = both("trained_alike", place)
    assert found[0] == found[1]
    alone = processes.trained_alike()
    assert list(alone) == [f"{loss} {mask}" for loss, mask in processes.CASES] == list(found[0])
    for case, one in alone.items():
        two = found[0][case]
        np.testing.assert_allclose(two["weights"], one["weights"], rtol=0, atol=1e-10)
        assert two["metrics"] == one["metrics"]
        for row, expected in zip(two["history"], one["history"], strict=True):
            assert row == pytest.approx(expected, abs=1e-10)


def test_a_run_is_written_by_one_and_resumed_bit_for_bit_after_a_kill(
    place: Path, tmp_path: Path
) -> None:
    launched("resumed", tmp_path, "--max-restarts", "1")
    whole, broken = both("trained_together", place), both("resumed", tmp_path)
    for found in whole:
        assert "hold an example for each of 2 processes" in found.pop("few")
        assert found.pop("items") == found.pop("arrays")
    assert [found.pop("told") for found in whole] == [3, 0]
    assert [found.pop("told") for found in broken] == [2, 0]
    assert not any(found.pop("was_there") for found in whole)
    assert all(found.pop("was_there") for found in broken)
    assert whole[0] == whole[1] == broken[0] == broken[1]
    rest: dict[str, Any] = {"run_dir": place / "run", "resume": True}
    again = processes.network(*processes.inner()), processes.arrays(np.float32)
    word = "number of processes must divide the run's batch of 16"
    three = patch.object(engine, "together", lambda: nullcontext((0, 3)))
    with pytest.raises(ConfigError, match=word), three:
        spatlib.train(*again, **rest)
    result = spatlib.train(*again, **rest)  # which one process may go on with
    assert result.training.batch_size == 16
    assert result.metrics == whole[0]["metrics"]
    for run in (tmp_path, place / "run"):
        assert len((run / "metrics.csv").read_text().splitlines()) == 4


def test_each_example_of_a_loader_is_counted_once(place: Path) -> None:
    first, second = both("shared_out", place)
    assert first.pop("said") == "2 processes train on batches of 2 x 8 examples"
    assert second.pop("said") == ""
    for found in (first, second):
        for name in ("whole", "shuffled"):
            said = found["train"].pop(name)
            assert "be shared out: pass the data set, or a loader with sampler=Dis" in said
    assert first == second
    trained, measured = first["train"], first["test"]
    assert trained["nested"] == trained["sampler"]
    assert all(each["reported"] == each["alone"] for each in trained.values()), trained
    assert "give all processes batches in one order" in measured.pop("disordered")
    expected = measured.pop("arrays")
    assert len(measured) == 8, measured.keys()
    assert all(report == expected for report in measured.values()), measured


def test_those_that_are_left_say_that_a_process_has_ended(place: Path) -> None:
    left = json.loads(Path(place, "left-0.json").read_text())
    assert left.startswith("BackendError: a process of the training has ended (")
    assert left.endswith("): look at what it printed, and resume the run")


def test_trouble_in_one_process_ends_all_with_a_sentence(place: Path) -> None:
    first, second = both("troubled", place)
    assert first.pop("kept"), "a layer that no process uses"
    words = {
        "rows": "data must be the same in every process",
        "epochs": "settings must be the same in every process",
        "network": "model must be the same in every process",
        "items": "data must be the same in every process",
    }
    causes = {"label": "DataError: y must hold labels from 0 to 4", "run": "NotADirectoryError: "}
    for name, word in causes.items():
        found = sorted([first.pop(name), second.pop(name)], key=lambda said: "Peer" in said)
        assert found[0].startswith(word)
        assert found[1] == "PeerError: another process cannot train: see what it printed"
    for name, word in words.items():
        assert word in first.pop(name), name
        assert word in second.pop(name), name
    assert first == second
    models = ("sometimes", "lazy", "expanded", "overflows")
    assert {first[f"{name} error"] for name in models} == {"none"}


def test_a_world_without_a_meeting_point_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BackendError, match=r"WORLD_SIZE is set, but .* by torchrun, or unset it"):
        spatlib.train(processes.network(), processes.arrays(), config=spatlib.SPATConfig(eps=0.1))
