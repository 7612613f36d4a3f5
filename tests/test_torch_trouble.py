"""PyTorch's training loop when a loss explodes or a batch is not as it should be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spatlib import DataError, NonFiniteError

from .looping import (
    BATCH,
    CLASSES,
    Explode,
    Keeper,
    Until,
    arrays,
    fit,
    generators,
    network,
    state,
    training,
)


class Failing(nn.Module):
    """Fails in one pass of training, or from it on; attacks run in the other mode."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.inner, self.at, self.how, self.passes = network(), at, how, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        self.passes += self.training
        if not self.training or self.passes != self.at:
            return logits
        return logits * math.nan if self.how == "loss" else Explode.apply(logits)


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", [None, torch.optim.AdamW])
@pytest.mark.parametrize("at", [1, 2, 4, 7, 8])  # of 4 steps in each of 2 epochs
def test_a_loss_that_explodes_leaves_the_last_whole_epoch(
    at: int, optimizer: Any, how: str
) -> None:
    settings = {"optimizer": optimizer, "ema": 0.5}
    whole = (at - 1) // 4
    expected = Failing(99, how)
    _, rows = fit(arrays(), expected, Until(training(), whole), **settings)
    model = Failing(at, how)
    before = generators()
    noticed = at if how == "loss" or at % 4 == 0 else at + 1
    with pytest.raises(NonFiniteError, match=rf"at step {noticed}: .* last whole epoch") as caught:
        fit(arrays(), model, **settings)
    assert state(model) == state(expected)
    assert [row["loss"] for row in caught.value.history] == [row["loss"] for row in rows]
    assert generators() == before


def test_the_same_is_left_by_a_run_that_was_resumed_in_the_epoch() -> None:
    keeper = Keeper(training())
    fit(arrays(), Failing(99, "loss"), keeper)
    expected = Failing(99, "loss")
    fit(arrays(), expected, Until(training(), 1))
    model = Failing(2, "loss")  # the second step from here, the eighth of all
    with pytest.raises(NonFiniteError, match="at step 8"):
        fit(arrays(), model, Keeper(training(), keeper.kept[5]))
    assert state(model) == state(expected)


@pytest.mark.parametrize("at", [1, 50, 51, 120])
def test_it_stops_within_fifty_steps(at: int) -> None:
    model = Failing(at, "loss")
    x, y = map(torch.as_tensor, arrays(4))
    with pytest.raises(NonFiniteError, match=rf"step {at}\b"):
        fit([(x, y)] * 130, model, epochs=1)
    assert at <= model.passes < at + 50


class Spoilt:
    """Batches of which one, in one epoch, is not as it should be."""

    def __init__(self, epoch: int, number: int, x: float | None = None, y: int = 0) -> None:
        self.place, self.value, self.label, self.begun = (epoch, number), x, y, 0

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.begun += 1
        for number in range(1, 4):
            x, y = (torch.as_tensor(part).clone() for part in arrays(BATCH))
            if (self.begun, number) == self.place:
                y[0] = self.label
                x[0, 0, 0, 0] = x[0, 0, 0, 0] if self.value is None else self.value
            yield x, y


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "below": ({"x": -3.0}, r"x must hold finite values in \[0, 1\], got -3 to"),
    "above": ({"x": 1.001}, r"x must .* to 1.001: scale it"),
    "NaN": ({"x": math.nan}, "x must hold finite values"),
    "infinite": ({"x": math.inf}, "x must hold finite values .* to inf"),
    "label": (
        {"y": CLASSES},
        r"y must hold labels from 0 to 2 \(3 outputs of the model\), got \d to 3",
    ),
    "negative label": ({"y": -1}, "y must hold labels .* got -1 to"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_batch_within_an_epoch_is_named(bad: str) -> None:
    spoilt, words = BAD[bad]
    expected, model = network(), network()
    fit(Spoilt(9, 9), expected, Until(training(), 1))
    with pytest.raises(DataError, match=f"^epoch 2, batch 3: {words}") as caught:
        fit(Spoilt(2, 3, **spoilt), model)
    assert not isinstance(caught.value, NonFiniteError)
    assert state(model) == state(expected)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_first_batch_is_refused_before_any_update(bad: str) -> None:
    spoilt, words = BAD[bad]
    model, called = network(), []
    model.register_forward_hook(lambda *_: called.append(model.training))
    with pytest.raises(DataError, match=f"^{words}"):
        fit(Spoilt(1, 1, **spoilt), model)
    assert state(model) == state(network())
    assert len(called) <= 1, "at most the pass that counts the classes"


def test_rounding_is_no_bad_batch() -> None:
    fit(Spoilt(1, 2, x=1 + 5e-7))
    fit(Spoilt(2, 1, x=-5e-7))


def test_arrays_are_checked_whole_by_one_call_of_the_network() -> None:
    (x, y), passes = arrays(5 * BATCH), []
    model = network()
    model.register_forward_pre_hook(lambda *inputs: passes.append(len(inputs[1][0])))
    y[-1] = CLASSES
    with pytest.raises(DataError, match="y must hold labels"):
        fit((x, y), model)
    assert passes == [BATCH]
