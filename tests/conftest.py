"""Hypothesis profiles (quick by default, HYPOTHESIS_PROFILE=deep for thousands of examples)."""

from __future__ import annotations

import os

# One thread per worker: the tensors are small, and threads of two workers would fight for cores.
for _name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(_name, "1")

import torch  # noqa: F401, I001  # has to be imported before TensorFlow

import pytest
from hypothesis import HealthCheck, settings

from .backends import BACKENDS, Backend

_common = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=30, derandomize="CI" in os.environ, **_common)
settings.register_profile("deep", max_examples=3000, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]
