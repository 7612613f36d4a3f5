"""Importing spatlib loads no framework, and a missing framework is named with its remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "tensorflow", "keras", "matplotlib", "jax")
LOADED = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"

# Stands in for an installation without torch, wherever it would be found.
WITHOUT_TORCH = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Blocker())
"""

CAUGHT = """
try:
    {action}
except Exception as error:  # whatever comes is printed, for the test to compare
    print(type(error).__name__, error, sep=" | ")
else:
    print("nothing raised")
"""


def run(code: str, *flags: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def caught(action: str, before: str, *flags: str) -> str:
    return run(before + CAUGHT.format(action=action), *flags)


@pytest.mark.parametrize(
    "statements",
    [
        "import spatlib",
        "from spatlib import *",
        "import spatlib; spatlib.SPATConfig()",
        "import spatlib.core.mask, spatlib.core.projection, spatlib.core.numpy_ops",
        "from spatlib.data import load; load('digits', channels_first=True)",
    ],
)
def test_no_framework_is_loaded(statements: str) -> None:
    assert run(f"{statements}\n{LOADED}") == ""


def test_a_loaded_framework_would_be_noticed() -> None:
    assert "torch" in run(f"import spatlib.backends as b; b.load_engine('torch')\n{LOADED}").split()


@pytest.mark.parametrize(
    "action",
    [
        "spatlib.train(backend='torch')",
        "spatlib.evaluate(object(), backend='torch')",
        "spatlib.train(object(), ([[0.5]], [0]))",
    ],
)
def test_missing_torch_is_a_backend_error_with_the_command_to_run(action: str) -> None:
    kind, message = caught(action, f"{WITHOUT_TORCH}\nimport spatlib").split(" | ")
    assert kind == "BackendError"
    assert "pip install torch" in message
    assert "No module named 'torch'" in message


def test_torch_is_really_missing_there() -> None:
    assert caught("import torch", WITHOUT_TORCH).startswith("ModuleNotFoundError")
    assert caught("import torch", "import sys") == "nothing raised"


def test_an_error_inside_the_framework_is_named_too(tmp_path: Path) -> None:
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so: cannot open')")
    before = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport spatlib"
    kind, message = caught("spatlib.train(backend='torch')", before).split(" | ")
    assert kind == "BackendError"
    assert "libcudart.so: cannot open" in message


CHECKS = {
    "spatlib.SPATConfig(eps=8)": "ConfigError | eps",
    "spatlib.SPATConfig(bounds=(1, 0))": "ConfigError | bounds",
    "spatlib.TrainConfig(epochs=0)": "ConfigError | epochs",
    "perturb(model, 2 * x, y, spatlib.SPATConfig())": "DataError | x",
    "perturb(model, x, y + 9, spatlib.SPATConfig())": "DataError | y",
    "perturb(model, x, y, spatlib.SPATConfig(), mask=x + 1)": "DataError | mask",
    "perturb(model, x, y, spatlib.SPATConfig(), start=x[:1, :3])": "DataError | start",
    "perturb(torch.nn.Flatten(0), x, y, spatlib.SPATConfig())": "DataError | model",
}


def test_input_is_checked_under_optimisation() -> None:
    lines = [
        "import sys, torch, spatlib",
        "from spatlib_torch import perturb",
        "model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())",
        "x, y = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)",
        "print(sys.flags.optimize)",
        *(CAUGHT.format(action=action) for action in CHECKS),
    ]
    optimised, *results = run("\n".join(lines), "-O").splitlines()
    assert optimised == "1"
    for result, expected in zip(results, CHECKS.values(), strict=True):
        assert result.startswith(f"{expected} must ")
