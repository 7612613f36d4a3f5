"""Imports: no framework unasked, a missing one is named, short chains, no private names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .scan import imported, longest_chain, private_names, sources

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


def test_no_framework_is_loaded() -> None:
    statements = (
        "import spatlib",
        "from spatlib import *",
        "spatlib.SPATConfig(eps=0.1, mask=spatlib.Mask())",
        "import spatlib.core.attack, spatlib.core.numpy_ops",
        "spatlib.load_data('digits', limit=3)",
        "from spatlib.data import as_dataset; as_dataset('digits', channels_first=True)",
        "spatlib.RECIPES['mnist'].change(steps=2)",
    )
    assert run("\n".join(f"{each}\n{LOADED}" for each in statements)) == ""


def test_a_loaded_framework_would_be_noticed() -> None:
    assert "torch" in run(f"import spatlib.engines as e; e.load_engine('torch')\n{LOADED}").split()


def test_missing_torch_is_a_backend_error_with_the_command_to_run() -> None:
    actions = (
        "spatlib.train()",
        "spatlib.train(backend='torch')",
        "spatlib.train(object(), ([[0.5]], [0]), config=spatlib.SPATConfig(eps=0.1))",
        "spatlib.evaluate(Model(), recipe='digits')",
        "spatlib.audit(Model(), [[0.5]], [[0.5]], [0])",
    )
    model = "import spatlib\nModel = type('Model', (), {'__module__': 'torch'})"
    code = "".join(CAUGHT.format(action=action) for action in actions)
    for line, action in zip(
        run(f"{WITHOUT_TORCH}\n{model}\n{code}").splitlines(), actions, strict=True
    ):
        kind, message = line.split(" | ")
        assert kind == "BackendError", action
        assert "run pip install torch" in message
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


KERAS_ON_TORCH = "import os; os.environ['KERAS_BACKEND'] = 'torch'\nimport spatlib\n"
MODELS_OF_BOTH = """
import torch, keras
from spatlib_torch import spat_loss
layers = [keras.layers.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
model = keras.Sequential(layers)
inside = torch.nn.Sequential(torch.nn.Flatten(), model)
x, y, config = torch.rand(8, 4), torch.arange(8) % 3, spatlib.SPATConfig(eps=0.1)
"""


def test_models_of_keras_on_pytorch_are_refused_as_their_batchnorm_would_not_move() -> None:
    refused = "ConfigError | model must be a torch.nn.Module that returns logits, not of Keras"
    other = "BackendError | spatlib_tf needs Keras on TensorFlow, got Keras on torch"
    early = dict.fromkeys(("import spatlib_tf", "spatlib.train(backend='tf')"), other)
    late = {
        "spat_loss(model, x, y, config)": refused,
        "spat_loss(inside, x, y, config)": refused,
        "spatlib.train(inside, (x, y), config=config)": refused,
        "spatlib.evaluate(model, (x, y), config)": other,
        "import spatlib_tf": other,
        "spatlib.evaluate(keras.Sequential(), 'digits')": other,
    }
    tried = ["".join(CAUGHT.format(action=each) for each in part) for part in (early, late)]
    found = run(KERAS_ON_TORCH + tried[0] + MODELS_OF_BOTH + tried[1]).splitlines()
    for line, expected in zip(found, [*early.values(), *late.values()], strict=True):
        assert line.startswith(expected)
        assert expected is refused or "KERAS_BACKEND=tensorflow" in line


CHECKS = {
    "spatlib.SPATConfig(eps=8)": "ConfigError | eps",
    "spatlib.SPATConfig(eps=1, bounds=(1, 0))": "ConfigError | bounds",
    "spatlib.TrainConfig(epochs=0)": "ConfigError | epochs",
    "spatlib.Mask(keep=0)": "ConfigError | keep",
    "spatlib.Threat(eps=0.1, norm='L7')": "ConfigError | norm",
    "perturb(model, 2 + x, y, config)": "DataError | x",
    "perturb(model, x, y + 9, config)": "DataError | y",
    "perturb(model, x, y, config, mask=x + 1)": "DataError | mask",
    "perturb(model, x, y, config, start=x[:1, :3])": "DataError | start",
    "perturb(torch.nn.Flatten(0), x, y, config)": "DataError | model",
}


def test_input_is_checked_under_optimisation() -> None:
    lines = [
        "import sys, torch, spatlib",
        "from spatlib_torch import perturb",
        "model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())",
        "x, y = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)",
        "config = spatlib.SPATConfig(eps=0.1)",
        "print(sys.flags.optimize)",
        *(CAUGHT.format(action=action) for action in CHECKS),
    ]
    optimised, *results = run("\n".join(lines), "-O").splitlines()
    assert optimised == "1"
    for result, expected in zip(results, CHECKS.values(), strict=True):
        assert result.startswith(f"{expected} must ")


LONGEST = 7
PACKAGES = ("spatlib", "spatlib_torch", "spatlib_tf")


def test_chains_of_imports_are_short() -> None:
    found = longest_chain(sources(ROOT, "spatlib"))
    assert 4 < len(found) <= LONGEST, " > ".join(found)


def written(folder: Path, files: dict[str, str]) -> dict[str, ast.Module]:
    """The package ``own`` of these files."""
    for name, text in files.items():
        path = folder / "own" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sources(folder, "own")


def test_a_chain_is_followed_through_all_kinds_of_imports(tmp_path: Path) -> None:
    files = {
        "__init__": "from .a import one",
        "a": "import own.b\none = 1",
        "b": "try:\n    from .c import d\nexcept ImportError:\n    pass",
        "c/__init__": "",
        "c/d": "if True:\n    from .. import e",
        "e": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import f",
        "f": "import own\nfrom own import one",
        "g": "def late():\n    from . import f",
    }
    modules = written(tmp_path, files)
    assert longest_chain(modules) == ["own", "own.a", "own.b", "own.c.d", "own.e"]
    assert imported(modules, "own") == imported(modules, "own.f") == {"own.a"}
    assert imported(modules, "own.g") == set()
    modules = written(tmp_path, {"e": "from . import f"})
    with pytest.raises(AssertionError, match="circle"):
        longest_chain(modules)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_private_name_of_another_package_is_used(package: str) -> None:
    modules = sources(ROOT, package)
    assert len(modules) > 5
    assert private_names(package, modules) == []


@pytest.mark.parametrize(
    "line",
    [
        "from torch._functorch import config",
        "import torch._dynamo",
        "from torch.nn import _reduction",
        "from spatlib.data import _digits",
        "import torch; torch._C",
        "import torch; torch.nn.Module()._buffers['x']",
        "import torch as t\ndef f(model): return model._compiled_call_impl",
        "import torch\nclass A(torch.nn.Module):\n    def f(self): return self._parameters",
        "getattr(object(), '_parameters')",
        "vars(object())['_compiled_call_impl']",
    ],
)
def test_a_private_name_would_be_noticed(line: str, tmp_path: Path) -> None:
    assert len(private_names("own", written(tmp_path, {"__init__": line}))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from __future__ import annotations",
        "from . import _a",
        "from own._a import _b",
        "class A:\n    def _f(self): return self._f",
        "class A:\n    def __init__(self): self._x = 1\n    def f(self): return self._x",
        "import torch; torch.__version__",
        "for _ in (): pass",
        "from collections import namedtuple\nnamedtuple('A', 'x')(1)._replace(x=2)",
    ],
)
def test_private_names_of_ones_own_are_allowed(line: str, tmp_path: Path) -> None:
    assert private_names("own", written(tmp_path, {"__init__": line})) == []
