"""Primitives on their own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from spatlib.core.ops import Array, Ops

from .backends import Backend
from .record import agree, saw
from .test_target import Case, cases, ulps

pytestmark = pytest.mark.verifies


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
def test_mantissa_bits_count_the_hidden_one(backend: Backend, dtype: str, bits: int) -> None:
    saw(dtype)
    assert backend.ops.mantissa_bits(backend.array(np.zeros(1, dtype))) == bits
    assert np.finfo(dtype).eps == 2.0 ** (1 - bits)


def test_repeat_asks_no_more_once_all_are_done(backend: Backend) -> None:
    asked: list[None] = []

    def done(x: Array) -> Array:
        asked.append(None)
        return x >= 2

    def run(ops: Ops, x: Array) -> Array:
        return ops.repeat(lambda x: (x + 1,), 9, (x,), done)[0]

    rounds = set(backend.call(run, np.array([0.0, 1, 0])) - [0, 1, 0])
    assert (len(asked), rounds) in ((3, {2}), (0, {9}))  # or asking is not free


def test_channels_of_images_are_where_the_framework_has_them(backend: Backend) -> None:
    axis = -1 if backend.name in ("numpy", "tf") else 1
    assert axis == backend.ops.CHANNEL_AXIS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("x", [[[0, 2, 2, 1]], [[3, 3, 3]], [[-1, -2], [-2, -1]]], ids=str)
def test_argmax_one_hot_marks_one_of_the_largest_in_the_dtype_of_its_input(
    backend: Backend, x: list[list[int]], dtype: str
) -> None:
    logits = np.array(x, dtype)
    marked = backend.call(lambda ops, z: ops.argmax_one_hot(z), logits)
    assert marked.dtype == logits.dtype
    np.testing.assert_array_equal(np.sort(marked, axis=1)[:, :-1], 0)
    np.testing.assert_array_equal(marked.sum(axis=1), 1)
    np.testing.assert_array_equal((marked * logits).sum(axis=1), logits.max(axis=1))


@given(case=cases())
def test_log_softmax_and_logsumexp_are_exact_for_logits_of_any_size(
    backend: Backend, case: Case
) -> None:
    log_p = backend.call(lambda ops, z: ops.log_softmax(z), case.z)
    total = backend.call(lambda ops, z: ops.logsumexp(z), case.z)
    assert log_p.dtype == total.dtype == case.z.dtype
    # 1e4 added to all logits costs no digit of log p; the sum is of K terms, added in lanes of 8.
    near = {"rtol": ulps(total), "atol": ulps(total, 8 + case.classes / 8)}
    agree(log_p, case.log_p, **near, scale=1)
    agree(total, case.z.max(axis=1) - case.log_p.max(axis=1), **near, scale=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logsumexp_ignores_entries_of_minus_infinity(backend: Backend, dtype: str) -> None:
    z = np.array([[-np.inf, 1e4, -np.inf], [0, -np.inf, 0], [-1e4, -np.inf, -np.inf]], dtype=dtype)
    result = backend.call(lambda ops, z: ops.logsumexp(z), z)
    agree(result, [1e4, np.log(2), -1e4], rtol=ulps(z, 2))
