"""Bad input is refused at the door, by the right class and with a way out; good input is not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spatlib import (
    BackendError,
    ConfigError,
    DataError,
    Mask,
    SPATConfig,
    SpatlibError,
    Threat,
)
from spatlib_torch import perturb, shared_mask, spat_loss
from spatlib_torch.attack import attacked, outer

N, CLASSES = 4, 3
SHAPE = (N, 1, 2, 2)
X, Y = torch.linspace(0, 1, 16).reshape(SHAPE), torch.arange(N) % CLASSES
ALSO = {ConfigError: ValueError, DataError: ValueError, BackendError: ImportError}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
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
    assert len(message) <= 400
    assert len(message.splitlines()) == 1
    assert not message.endswith(".")
    cause = found.__cause__  # the error of another library, which may speak in several sentences
    own = message if cause is None else message.replace(str(cause), "")
    assert not re.search(r"[.!?] [A-Z]", own)
    return found


ATTACK, MASKED = SPATConfig(eps=0.1), SPATConfig(eps=0.1, mask=Mask())


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
    "several inputs": ({"x": (X, X)}, "got 2: wrap the model"),
    "numpy labels": ({"y": Y.numpy()}, "torch.as_tensor"),
    "no batch axis": ({"x": X.flatten()}, "batch"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "at least one"),
    "label too large": ({"y": Y + 1}, "from 0 to 2 (3 outputs of the model)"),
    "label negative": ({"y": Y - 1}, "-1"),
    "label column": ({"y": Y[:, None]}, "(4, 1)"),
    "rows of sum 2": ({"y": 2 * torch.eye(CLASSES)[Y]}, "rows that sum to 1"),
    "rows of sum 0.99": ({"y": 0.99 * torch.eye(CLASSES)[Y]}, "got 0.99 to 0.99: divide each"),
    "rows below 0": ({"y": torch.tensor([[1.5, -0.5, 0]] * N)}, "got -0.5 to -0.5"),
    "rows of NaN": ({"y": torch.full((N, CLASSES), math.nan)}, "got nan"),
    "rows of another width": ({"y": torch.eye(CLASSES + 1)[Y]}, "(N, 3), one column per output"),
    "soft labels for mart": (
        {"y": torch.full((N, CLASSES), 1 / 3), "config": replace(MASKED, loss="mart")},
        "one-hot for loss='mart'",
    ),
    "bool rows": ({"y": torch.eye(CLASSES)[Y] > 0}, "bool"),
    "float labels": ({"y": Y.float()}, "float32"),
    "bool labels": ({"y": Y > 0}, "bool"),
    "too few labels": ({"y": Y[:3]}, "(3,)"),
    "3-D logits": ({"model": Wrong(lambda z: z[..., None])}, "(N, K)"),
    "logits without batch": ({"model": Wrong(lambda z: z.sum(dim=0))}, "(N, K)"),
    "fewer logits than inputs": ({"model": Wrong(lambda z: z[:2])}, "(2, 3)"),
    "one logit": ({"model": Wrong(lambda z: z[:, :1])}, "[-z / 2, z / 2] for one logit z"),
    "a flat logit": ({"model": Wrong(lambda z: z[:, 0])}, "K >= 2"),
    "tuple": ({"model": Wrong(lambda z: (z, z))}, "tuple"),
    "detached": ({"model": Wrong(lambda z: z.detach())}, "autograd"),
    "no settings": ({"config": None}, "SPATConfig, got None"),
    "too many classes": (
        {"config": SPATConfig(eps=0.1, mask=Mask(classes=CLASSES + 1))},
        "classes",
    ),
}


@pytest.mark.parametrize("function", [perturb, spat_loss, shared_mask], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches_are_refused(case: str, function: Callable[..., Any]) -> None:
    wrong, word = BAD_BATCHES[case]
    arguments = {"model": network(), "x": X, "y": Y, "config": MASKED} | wrong
    error = DataError if arguments["config"] else ConfigError
    found = check(error, "", lambda: function(**arguments))
    assert word in str(found).replace(f"({N}, K)", "(N, K)")
    assert str(found).split()[0] in {*wrong, "classes"}, "the argument at fault comes first"


@pytest.mark.parametrize("model", ["small_cnn", None, nn.Linear, lambda x: x], ids=range(4))
@pytest.mark.parametrize("function", [perturb, spat_loss, shared_mask], ids=lambda f: f.__name__)
def test_what_is_no_module_is_refused(function: Callable[..., Any], model: Any) -> None:
    word = "model must be a torch.nn.Module that returns logits"
    check(ConfigError, word, lambda: function(model, X, Y, MASKED))


@pytest.mark.parametrize("function", [perturb, spat_loss, shared_mask], ids=lambda f: f.__name__)
def test_a_threat_is_no_training_attack(function: Callable[..., Any]) -> None:
    word = "config must be a spatlib.SPATConfig, got Threat"
    check(ConfigError, word, lambda: function(network(), X, Y, Threat(eps=0.1)))


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
    "infinite start": {"start": torch.full(SHAPE, -math.inf)},
}


@pytest.mark.parametrize("case", BAD_BUDGETS)
def test_bad_start_or_mask_is_refused(case: str) -> None:
    (name,) = BAD_BUDGETS[case]
    error = check(DataError, name, lambda: perturb(network(), X, Y, ATTACK, **BAD_BUDGETS[case]))
    assert str(error).startswith(name)


BAD_EXAMPLES: dict[str, Any] = {
    "numpy": X.numpy(),
    "of another batch": X[:3],
    "flat": X.flatten(1),
    "of another size": X.repeat(1, 3, 1, 1),
    "pixels": (255 * X).to(torch.uint8),
    "above": with_value(1.01),
    "nan": with_value(math.nan),
}


@pytest.mark.parametrize("case", BAD_EXAMPLES)
def test_perturbed_examples_that_are_not_those_of_the_batch_are_refused(case: str) -> None:
    given = {"x_adv": BAD_EXAMPLES[case]}
    error = check(DataError, "x_adv", lambda: spat_loss(network(), X, Y, ATTACK, **given))
    assert str(error).startswith("x_adv must ")


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_start_and_mask_take_the_dtype_of_the_input(norm: str) -> None:
    model, config, (start, mask) = network(), SPATConfig(eps=0.5, norm=norm), torch.rand(2, *SHAPE)
    expected = perturb(model, X, Y, config, start=start, mask=mask)
    ours = perturb(model, X, Y, config, start=start.double(), mask=mask.double())
    assert ours.dtype == X.dtype
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
def test_labels_of_any_integer_dtype_are_accepted(dtype: torch.dtype) -> None:
    model, config = network(), SPATConfig(eps=0.1, random_start="none")
    assert torch.equal(perturb(model, X, Y.to(dtype), config), perturb(model, X, Y, config))


@pytest.mark.parametrize("value", [-3e-8, 1 + 1.2e-7])
def test_rounding_beyond_the_bounds_is_clipped(value: float) -> None:
    x = with_value(value)
    assert x.min() < 0 or x.max() > 1
    ours = perturb(network(), x, Y, SPATConfig(random_start="none", eps=1e-9, step_size=1e-9))
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_values_are_not_read_without_validation() -> None:
    result = perturb(network(), with_value(1.5), Y, ATTACK, validate=False)
    assert result.max() <= 1
    check(
        DataError,
        "uint8",
        lambda: perturb(network(), (X > 0).byte(), Y, ATTACK, validate=False),
    )


def test_labels_are_looked_at_with_an_attack_of_ones_own_too() -> None:
    wrong = torch.tensor([0, 1, 2, CLASSES])
    check(DataError, "labels", lambda: spat_loss(network(), X, wrong, MASKED, x_adv=X))


def test_a_loop_of_many_steps_asks_for_no_label_and_sees_wrong_ones_in_their_losses() -> None:
    wrong = torch.tensor([0, 1, 2, CLASSES])
    found = attacked(network(), X, wrong, ATTACK)
    losses, _ = outer(network(), X, found.x, wrong, ATTACK)
    assert losses.isnan().tolist() == [False, False, False, True]
