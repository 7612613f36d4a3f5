"""Hypothesis profiles (quick; HYPOTHESIS_PROFILE=deep, fuzz), backends, verification table."""

from __future__ import annotations

import gc
import os
import signal
import sys

# One thread per worker: the tensors are small, and threads of two workers would fight for cores.
for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # Hugging Face's libraries look at it when they are imported

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings

from . import record
from .backends import BACKENDS, Backend
from .table import property_table, write_section

_common = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=20, derandomize="CI" in os.environ, **_common)
settings.register_profile("deep", max_examples=500, **_common)
settings.register_profile("fuzz", max_examples=5000, **_common)
settings.register_profile(
    "mutants",
    max_examples=15,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    **_common,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# Their fixtures take seconds: begun last, one would leave the other workers idle.
LONGEST = ("test_tf_strategies", "test_pages", "test_torch_processes", "test_benchmarks")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backends", default=",".join(BACKENDS), help="which of them to test")
    parser.addoption("--rehearse", action="store_true", help="tests of a GPU, on the CPU instead")
    parser.addoption("--verification", action="store_true", help="write docs/verification.md")


def pytest_configure(config: pytest.Config) -> None:
    # In the background of a shell SIGINT, which tests send, would be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "verifies(backends): a row of docs/verification.md")
    works = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
    if works and {"torch", "tf"} & set(selected(config)):
        import torch  # noqa: F401  # has to be imported before TensorFlow


def selected(config: pytest.Config) -> list[str]:
    return config.getoption("--backends").split(",")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", selected(metafunc.config), indirect=True, scope="session")
    if "engine" in metafunc.fixturenames:
        from .engines import ENGINES

        names = [name for name in ENGINES if name in selected(metafunc.config)]
        metafunc.parametrize("engine", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Any:
    from .engines import ENGINES

    return ENGINES[request.param]


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Networks and draws that a test does not seed itself are the same in every run."""
    import torch

    torch.manual_seed(0)  # Keras seeds it only where it is Keras' own backend
    if not request.node.get_closest_marker("gpu"):  # which need no TensorFlow
        import keras

        keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where the tests of a GPU run, and float32 is float32: TF32 has a mantissa of 11 bits."""
    if request.config.getoption("--rehearse"):
        return "cpu"
    import torch

    torch.backends.cudnn.allow_tf32 = False  # that of products is False anyway
    return "cuda"


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write empty pictures: drawn ones take a second each, and test_plots looks at them."""
    for name in ("curves", "sheet"):
        monkeypatch.setattr(f"spatlib.plots.{name}", lambda *_: b"")


@pytest.fixture
def one_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras networks are measured under one attack after training: each takes seconds to trace."""
    from spatlib.evaluate import Evaluation
    from spatlib_tf import engine as keras_engine

    module = sys.modules["spatlib.train"]  # the function hides the module
    original = module.measure

    def measure(engine: Any, model: Any, data: Any, evaluation: Any, **settings: Any) -> Any:
        if engine is keras_engine and ("margin",) in evaluation.named.values():  # not validation
            evaluation = Evaluation(evaluation.threat, ("pgd",))
        return original(engine, model, data, evaluation, **settings)

    monkeypatch.setattr(module, "measure", measure)


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The result and directory of a run of one's own network, never stopped; not to be changed."""
    from .running import train

    directory = tmp_path_factory.mktemp("own")
    return train(directory), directory


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The same of a network by name."""
    from .running import train_digits

    directory = tmp_path_factory.mktemp("digits")
    return train_digits(directory), directory


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    of_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_gpu and not config.getoption("--rehearse"):
        import torch

        if not torch.cuda.is_available():
            config.hook.pytest_deselected(items=of_gpu)
            items[:] = [item for item in items if item not in of_gpu]
    for item in items:
        test: Any = getattr(item, "obj", None)
        if is_hypothesis_test(test) and not hasattr(test.hypothesis.inner_test, "__wrapped__"):
            test.hypothesis.inner_test = record.counted(test.hypothesis.inner_test)


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now stays: no collection need go through it again


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    seen = record.begin()
    try:
        yield
    finally:
        marker = item.get_closest_marker("verifies")
        if marker is not None:
            params = getattr(item, "callspec", None)
            params = params.params if params else {}
            name = params.get("backend") or params.get("engine")
            seen.examples = seen.examples or 1
            row = seen.as_json() | {"backends": [name] if name else list(marker.args)}
            item.user_properties.append(("verified", row))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--verification") or hasattr(config, "workerinput"):
        return  # a worker knows its own tests only
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call"
    ]
    table = property_table(reports)
    terminalreporter.write_line(table)
    write_section("properties", table)
