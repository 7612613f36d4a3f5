"""Several processes of torchrun train as one does; here two, which talk by Gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import processes


def launched(what: str, place: Path, *options: str) -> list[dict[str, Any]]:
    """What both processes found."""
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
    return [json.loads(Path(place, f"{what}-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    found = launched("trained_alike", tmp_path)
    assert found[0] == found[1]
    alone = processes.trained_alike()
    assert list(alone) == [f"{loss} {mask}" for loss, mask in processes.CASES] == list(found[0])
    for case, one in alone.items():
        two = found[0][case]
        np.testing.assert_allclose(two["weights"], one["weights"], rtol=0, atol=1e-10)
        assert two["metrics"] == one["metrics"]
        for row, expected in zip(two["history"], one["history"], strict=True):
            assert row == pytest.approx(expected, abs=1e-10)


def test_statistics_and_files_are_those_of_one_run(tmp_path: Path) -> None:
    first, second = launched("trained_together", tmp_path)
    assert first["weights"] == second["weights"]
    assert first["metrics"] == second["metrics"]
    assert (first["told"], second["told"]) == (2, 0)
    assert first["loader"]["shared"]["weights"] == second["loader"]["shared"]["weights"]
    for found in (first, second):
        assert "hold an example for each of 2 processes" in found["few"]
        assert "sampler=DistributedSampler" in found["loader"]["whole"]
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3


def test_a_killed_process_ends_the_others_and_the_run_is_resumed_bit_for_bit(
    tmp_path: Path,
) -> None:
    found = {}
    for what in ("resumed", "spared"):
        (place := tmp_path / what).mkdir()
        found[what] = launched(what, place, "--max-restarts", "1")
    for one, other in zip(*found.values(), strict=True):
        assert one.pop("was_there")
        assert not other.pop("was_there")
        assert one == other == found["spared"][0]
