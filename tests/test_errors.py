"""Bad input is refused at the door, by the right class and with a way out; good input is not."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spatlib import BackendError, ConfigError, DataError, SPATConfig, SpatlibError, TrainConfig
from spatlib_torch import perturb, shared_mask, spat_loss

N, CLASSES = 4, 3
SHAPE = (N, 1, 2, 2)
X, Y = torch.linspace(0, 1, 16).reshape(SHAPE), torch.arange(N) % CLASSES
ALSO = {ConfigError: ValueError, DataError: ValueError, BackendError: ImportError}


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES))


def check(error: type[SpatlibError], word: str, act: Callable[[], Any]) -> SpatlibError:
    """``act`` raises exactly this error, which says in one sentence what to mend and how."""
    with pytest.raises(error) as caught:
        act()
    found = caught.value
    assert type(found) is error
    assert isinstance(found, SpatlibError)
    assert isinstance(found, ALSO[error])
    message = str(found)
    assert word in message
    assert " must " in message or ": " in message  # "x must be ..." or "what is wrong: what to do"
    assert len(message.split()) > 3
    assert len(message) <= 300
    assert len(message.splitlines()) == 1
    assert not message.endswith(".")
    cause = found.__cause__  # the error of another library, which may speak in several sentences
    own = message if cause is None else message.replace(str(cause), "")
    assert not re.search(r"[.!?] [A-Z]", own)
    return found


NOT_POSITIVE = (0, 0.0, -0.1, math.nan, math.inf, -math.inf, "8/255", True, (0.1,), 1 + 0j)
NOT_COUNTS = (0, -1, 1.0, 2.5, True, "3", math.nan)
NOT_SHARES = (1.0001, -0.1, math.nan, "0.5", True)

BAD_SETTINGS: list[tuple[type, dict[str, Any], str]] = [
    *((SPATConfig, {name: value}, name) for name in ("eps", "step_size") for value in NOT_POSITIVE),
    *((SPATConfig, {name: value}, name) for name in ("steps", "probes") for value in NOT_COUNTS),
    *((SPATConfig, {"keep": value}, "keep") for value in (0, *NOT_SHARES)),
    *((SPATConfig, {"floor": value}, "floor") for value in NOT_SHARES),
    *((SPATConfig, {"smoothing": value}, "smoothing") for value in (1, *NOT_SHARES)),
    *((SPATConfig, {"beta": value}, "beta") for value in (-1, math.nan, math.inf, "6")),
    *((SPATConfig, {"mask_classes": value}, "mask_classes") for value in (1, 0, 2.0, "all", True)),
    (SPATConfig, {"mask_classes": 2, "share": "rms"}, "probes"),
    *((SPATConfig, {"guard": value}, "guard") for value in (1, 0, None, "yes")),
    (SPATConfig, {"eps": 8}, "255"),
    (SPATConfig, {"eps": 1.001}, "255"),
    (SPATConfig, {"eps": 10**400}, "eps"),
    (SPATConfig, {"eps": 0.5, "bounds": (0, 0.4)}, "bounds"),
    (SPATConfig, {"norm": "linf"}, "'Linf'"),
    (SPATConfig, {"norm": None}, "'L2'"),
    (SPATConfig, {"norm": ["L2"]}, "'L2'"),
    (SPATConfig, {"base": "fgsm"}, "'trades'"),
    (SPATConfig, {"share": "max"}, "'neutral'"),
    (SPATConfig, {"random_start": True}, "'gaussian'"),
    (SPATConfig, {"attack_mode": "training"}, "'train'"),
    *(
        (SPATConfig, {"bounds": value}, "bounds")
        for value in (
            (1, 0),
            (0, 0),
            (0,),
            (0, 1, 2),
            1,
            None,
            "01",
            ("0", "1"),
            (0, math.inf),
            (math.nan, 1),
        )
    ),
    (SPATConfig, {"base": "trades", "random_start": "none"}, "random_start"),
    (
        SPATConfig,
        {"base": "trades", "random_start": "none", "guard": False, "smoothing": 0},
        "random_start",
    ),
    *(
        (TrainConfig, {name: value}, name)
        for name in ("epochs", "batch_size")
        for value in NOT_COUNTS
    ),
    *((TrainConfig, {"lr": value}, "lr") for value in NOT_POSITIVE),
    *((TrainConfig, {"momentum": value}, "momentum") for value in (1, *NOT_SHARES)),
    *((TrainConfig, {"weight_decay": value}, "weight_decay") for value in (-1, math.nan, "0")),
    *(
        (TrainConfig, {name: value}, name)
        for name in ("seed", "eps_warmup")
        for value in (-1, 0.5, None, True)
    ),
    *(
        (TrainConfig, {name: value}, name)
        for name in ("baseline", "progress")
        for value in (1, None, "no")
    ),
    (TrainConfig, {"schedule": "cosine"}, "'onecycle'"),
]


@pytest.mark.parametrize(("kind", "settings", "word"), BAD_SETTINGS)
def test_bad_settings_are_refused(kind: type, settings: dict[str, Any], word: str) -> None:
    check(ConfigError, word, lambda: kind(**settings))


GOOD_SETTINGS: list[dict[str, Any]] = [
    {"base": "trades", "random_start": "none", "guard": False, "smoothing": 0.1},
    {"base": "pgd", "random_start": "none", "smoothing": 0},
    {"eps": 1},
    {"eps": np.float32(0.1)},
    {"eps": 8, "bounds": (0, 255)},
    {"eps": 12, "norm": "L2"},
    {"bounds": [-1, 1]},
    {"keep": 1},
    {"floor": 0},
    {"floor": 1},
    {"smoothing": 0},
    {"smoothing": 0.999},
    {"beta": 0},
    {"mask_classes": 2},
    {"steps": 1},
]


@pytest.mark.parametrize("settings", GOOD_SETTINGS, ids=str)
def test_limits_themselves_are_accepted(settings: dict[str, Any]) -> None:
    config = SPATConfig(**settings)
    for name, value in settings.items():
        assert getattr(config, name) == (tuple(value) if name == "bounds" else value)


@pytest.mark.parametrize("kind", [SPATConfig, TrainConfig])
def test_settings_are_keyword_only_and_frozen(kind: type) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind(1)
    with pytest.raises(TypeError, match="unexpected"):
        kind(epsilon=0.1)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), field.name, None)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 8 / 255), ("L2", 0.5), ("L1", 12.0)])
def test_defaults_follow_norm_and_steps_and_explicit_values_stay(norm: str, eps: float) -> None:
    config = SPATConfig(norm=norm, steps=20)
    assert config.eps == eps
    assert config.step_size == 2.5 * eps / 20
    assert dataclasses.replace(config, steps=5).step_size == 0.5 * eps
    assert dataclasses.replace(config, eps=0.1).step_size == 2.5 * 0.1 / 20
    assert dataclasses.replace(config, norm="L2").eps == 0.5
    assert dataclasses.replace(config, norm="L2").step_size == 2.5 * 0.5 / 20
    explicit = SPATConfig(norm=norm, eps=0.2, step_size=0.3)
    for changes in ({"norm": "L1"}, {"steps": 50}, {"smoothing": 0.2}):
        replaced = dataclasses.replace(explicit, **changes)
        assert (replaced.eps, replaced.step_size) == (0.2, 0.3)


@pytest.mark.parametrize(
    ("given", "share", "keep", "floor"),
    [
        ({}, "min", 1.0, 0.5),
        ({"share": "min"}, "min", 0.5, 0.5),
        ({"floor": 0}, "min", 0.5, 0.0),
        ({"mask_classes": 4}, "min", 0.5, 0.5),
        ({"keep": 0.25}, "min", 0.25, 0.5),
        ({"share": "rms", "keep": 1}, "rms", 1.0, 0.5),
    ],
)
def test_a_mask_is_there_when_one_of_its_settings_is(
    given: dict[str, Any], share: str, keep: float, floor: float
) -> None:
    config = SPATConfig(**given)
    assert (config.share, config.keep, config.floor) == (share, keep, floor)
    assert SPATConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    for changed in (config, dataclasses.replace(config, eps=0.1)):
        assert changed.masked == (keep < 1)
    assert dataclasses.replace(config, share="mean").keep == given.get("keep", 0.5)


class Wrong(nn.Module):
    """A network whose output is not what is asked for."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = network(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


def with_value(value: float) -> Tensor:
    x = X.clone()
    x[1, 0, 1, 1] = value
    return x


BAD_BATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "above": ({"x": with_value(1.01)}, "1.01"),
    "below": ({"x": with_value(-0.01)}, "-0.01"),
    "beyond rounding": ({"x": with_value(1 + 1e-5)}, "bounds"),
    "nan": ({"x": with_value(math.nan)}, "finite"),
    "inf": ({"x": with_value(math.inf)}, "finite"),
    "pixels": ({"x": (255 * X).to(torch.uint8)}, "255"),
    "numpy": ({"x": X.numpy()}, "torch.as_tensor"),
    "numpy labels": ({"y": Y.numpy()}, "torch.as_tensor"),
    "no batch axis": ({"x": X.flatten()}, "batch"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "at least one"),
    "label too large": ({"y": Y + 1}, "3"),
    "label negative": ({"y": Y - 1}, "-1"),
    "label column": ({"y": Y[:, None]}, "(4,)"),
    "one-hot labels": ({"y": torch.eye(CLASSES)[Y].long()}, "(4,)"),
    "float labels": ({"y": Y.float()}, "float32"),
    "bool labels": ({"y": Y > 0}, "bool"),
    "too few labels": ({"y": Y[:3]}, "(3,)"),
    "3-D logits": ({"model": Wrong(lambda z: z[..., None])}, "(N, K)"),
    "logits without batch": ({"model": Wrong(lambda z: z.sum(dim=0))}, "(N, K)"),
    "fewer logits than inputs": ({"model": Wrong(lambda z: z[:2])}, "(2, 3)"),
    "one logit": ({"model": Wrong(lambda z: z[:, :1])}, "K >= 2"),
    "tuple": ({"model": Wrong(lambda z: (z, z))}, "tuple"),
    "detached": ({"model": Wrong(lambda z: z.detach())}, "autograd"),
    "no settings": ({"config": None}, "SPATConfig"),
    "too many classes": ({"config": SPATConfig(mask_classes=CLASSES + 1)}, "mask_classes"),
}


@pytest.mark.parametrize("function", [perturb, spat_loss, shared_mask])
@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches_are_refused(case: str, function: Callable[..., Any]) -> None:
    wrong, word = BAD_BATCHES[case]
    arguments = {"model": network(), "x": X, "y": Y, "config": SPATConfig(share="min")} | wrong
    error = DataError if arguments["config"] else ConfigError
    found = check(error, "", lambda: function(**arguments))
    assert word in str(found).replace(f"({N}, K)", "(N, K)")


BAD_BUDGETS: dict[str, dict[str, Any]] = {
    "numpy start": {"start": np.zeros(SHAPE)},
    "numpy mask": {"mask": np.ones(SHAPE)},
    "start of another batch": {"start": torch.zeros(3, 1, 2, 2)},
    "flat start": {"start": torch.zeros(N, 4)},
    "mask of another size": {"mask": torch.ones(N, 1, 3, 2)},
    "mask with more channels": {"mask": torch.ones(N, 2, 2, 2)},
    "mask without channel": {"mask": torch.ones(N, 2, 2)},
    "mask above 1": {"mask": torch.full(SHAPE, 1.01)},
    "mask below 0": {"mask": torch.full(SHAPE, -0.01)},
    "mask of nan": {"mask": torch.full(SHAPE, math.nan)},
    "start of nan": {"start": torch.full(SHAPE, math.nan)},
}


@pytest.mark.parametrize("function", [perturb, spat_loss])
@pytest.mark.parametrize("case", BAD_BUDGETS)
def test_bad_start_or_mask_is_refused(case: str, function: Callable[..., Any]) -> None:
    (name,) = BAD_BUDGETS[case]
    check(DataError, name, lambda: function(network(), X, Y, SPATConfig(), **BAD_BUDGETS[case]))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_start_and_mask_take_the_dtype_of_the_input(norm: str) -> None:
    model, config, (start, mask) = network(), SPATConfig(norm=norm), torch.rand(2, *SHAPE)
    expected = perturb(model, X, Y, config, start=start, mask=mask)
    ours = perturb(model, X, Y, config, start=start.double(), mask=mask.double())
    assert ours.dtype == X.dtype
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
def test_labels_of_any_integer_dtype_are_accepted(dtype: torch.dtype) -> None:
    model, config = network(), SPATConfig(random_start="none")
    assert torch.equal(perturb(model, X, Y.to(dtype), config), perturb(model, X, Y, config))


@pytest.mark.parametrize("value", [-3e-8, 1 + 1.2e-7])
def test_rounding_beyond_the_bounds_is_clipped(value: float) -> None:
    x = with_value(value)
    assert x.min() < 0 or x.max() > 1
    ours = perturb(network(), x, Y, SPATConfig(random_start="none", eps=1e-9, step_size=1e-9))
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_values_are_not_read_without_validation() -> None:
    result = perturb(network(), with_value(1.5), Y, SPATConfig(), validate=False)
    assert result.max() <= 1
    check(
        DataError,
        "uint8",
        lambda: perturb(network(), (X > 0).byte(), Y, SPATConfig(), validate=False),
    )
