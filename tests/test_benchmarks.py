"""The benchmarks of an accelerator, rehearsed on the CPU: what ends them early leaves the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import save
from benchmarks.setting import Setting
from benchmarks.step import measure

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accelerator.sh"


def begun(place: Path, minutes: int, *more: str) -> subprocess.Popen[str]:
    command = [str(SCRIPT), "--minutes", str(minutes), "--out", str(place), "--rehearse", *more]
    own = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, env=own, **pipes)


def parts(place: Path) -> dict[str, str]:
    """How each part ended, by name."""
    rows = [line.split("\t") for line in (place / "parts.tsv").read_text().splitlines()]
    return {name: status for name, _, status in rows}


def test_the_whole_script_runs_in_small(tmp_path: Path) -> None:
    script = begun(tmp_path, minutes=9)
    shown, _ = script.communicate(timeout=400)
    assert script.returncode == 0, shown
    names = ("marks", "launches", "small_eager", "large_epoch")
    assert parts(tmp_path) == {**dict.fromkeys(names, "0"), "evidence": "left out: no data"}
    assert " 7 passed" in (tmp_path / "marks.log").read_text()
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    (steps,) = (content for name, content in found.items() if name.startswith("step_"))
    assert {f"ours, {mask}" for mask in Setting().mask} | {"by hand"} <= set(steps["arms"])
    work = steps["gflop_per_image"]
    assert work["off"] == work["default"] < work["rms"] < work["classes4"] < work["min"]
    for name, row in steps["arms"].items():
        done = work.get(name.removeprefix("ours, "), work["off"])
        assert row["tflops"] == pytest.approx(2 * done / row["ms"])
    cases = {*(f"Linf, {mask}" for mask in Setting().mask), "L2, off"}
    assert set(found["launches_cpu_tiny_2"]["steps"]) == cases
    (epochs,) = found["epochs_cpu_tiny_Linf_4_eager"]["epochs"].values()
    assert len(epochs["seconds"]) == 2


def test_a_signal_ends_it_at_once(tmp_path: Path) -> None:
    script = begun(tmp_path, minutes=9)
    while not (tmp_path / "marks.log").exists():
        time.sleep(0.05)
        assert script.poll() is None
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=60)  # its part has ended too: the pipe is closed
    assert script.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("words", [["--minutes", "x"], ["--until", "9"], []])
def test_other_words_are_refused(words: list[str], tmp_path: Path) -> None:
    command = [str(SCRIPT), "--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert not (tmp_path / "out").exists()


def test_each_arm_of_a_step_is_kept_as_it_is_there(tmp_path: Path) -> None:
    setting, work = {"batch": 4}, {"off": 1.0, "min": 3.0}
    content: dict[str, Any] = {"setting": setting, "gflop_per_image": work}
    content |= {"left_out": {}, "arms": {}}
    kept: list[list[str]] = []

    def build(name: str) -> Any:
        if (tmp_path / "steps.json").exists():
            kept.append(list(json.loads((tmp_path / "steps.json").read_text())["arms"]))
        if name == "broken":
            raise RuntimeError("no kernel")
        if name == "ours, min":
            warnings.warn("not captured", stacklevel=1)
        return lambda: time.sleep(0.01)

    arms = {name: partial(build, name) for name in ("by hand", "broken", "ours, min")}
    end = time.monotonic() + 60
    measure(arms, content, partial(save, "steps", content, tmp_path), 3, end)
    assert kept == [["by hand"], ["by hand"]]
    assert content["left_out"] == {"broken": "RuntimeError: no kernel"}
    hand, ours = content["arms"]["by hand"], content["arms"]["ours, min"]
    assert (hand["ratio"], ours["rounds"]) == (1, 3)
    assert (hand.get("warnings"), ours["warnings"]) == (None, ["not captured"])
    assert ours["tflops"] / ours["images_per_s"] == pytest.approx(
        3 * hand["tflops"] / hand["images_per_s"]
    )
    none = {"left_out": dict[str, str](), "arms": dict[str, Any]()}
    measure(arms, content | none, lambda: None, 3, time.monotonic() - 1)
    assert list(none["arms"]) == ["by hand"]
    assert none["left_out"]["ours, min"] == "no time for it"
