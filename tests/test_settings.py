"""Settings: what they refuse, by which sentence, and what they follow."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from spatlib import ConfigError, Mask, SPATConfig, Threat, TrainConfig
from spatlib.config import plain_pgd

from .test_errors import check

NOT_POSITIVE = (0, 0.0, -0.1, math.nan, math.inf, -math.inf, "8/255", True, (0.1,), 1 + 0j)
NOT_COUNTS = (0, -1, 1.0, 2.5, True, "3", math.nan)
NOT_SHARES = (1.0001, -0.1, math.nan, "0.5", True)

NEEDED: dict[type, dict[str, Any]] = {Threat: {"eps": 0.1}, SPATConfig: {"eps": 0.1}}

BAD_SETTINGS: list[tuple[type, dict[str, Any], str]] = [
    *(
        (kind, settings, word)
        for kind in (Threat, SPATConfig)
        for settings, word in (
            *(({"eps": value}, "eps") for value in (None, *NOT_POSITIVE)),
            ({"eps": 8}, "8/255"),
            ({"eps": 1.001}, "255"),
            ({"eps": 10**400}, "eps"),
            ({"eps": 1e-40}, "that float32 holds"),
            ({"eps": 1e39, "norm": "L2"}, "that float32 holds"),
            ({"eps": 0.1, "bounds": (-3e38, 3e38)}, "that float32 holds"),
            ({"eps": 0.5, "bounds": (0, 0.4)}, "bounds"),
            ({"norm": "linf"}, "'Linf'"),
            ({"norm": None}, "'L2'"),
            ({"norm": ["L2"]}, "'L2'"),
            *(
                ({"bounds": value}, "bounds")
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
        )
    ),
    *((Mask, {"keep": value}, "keep") for value in (0, None, *NOT_SHARES)),
    *((Mask, {"floor": value}, "floor") for value in (None, *NOT_SHARES)),
    *((Mask, {"probes": value}, "probes") for value in (None, *NOT_COUNTS)),
    *((Mask, {"classes": value}, "classes") for value in (1, 0, 2.0, "all", True)),
    *((Mask, {"channel_axis": value}, "channel_axis") for value in (0, -1, 1.0, "last", True)),
    *((Mask, {"score": value}, "'neutral', 'random'") for value in ("max", None, ["min"])),
    (Mask, {"classes": 2, "score": "rms"}, "set probes instead"),
    *(
        (SPATConfig, {"mask": value}, "mask must be a spatlib.Mask or None")
        for value in ("min", 0.5, True, {"keep": 0.5}, Mask)
    ),
    *((SPATConfig, {"step_size": value}, "step_size") for value in NOT_POSITIVE),
    *((SPATConfig, {"step_size": value}, "float32 holds") for value in (1e39, 1e-40, 2.0**-140)),
    (SPATConfig, {"eps": 2e-38}, "step_size must be a number in (0, inf) that float32 holds"),
    (SPATConfig, {"eps": 3e38, "norm": "L1", "steps": 1}, "step_size"),
    *((SPATConfig, {"steps": value}, "steps") for value in (None, *NOT_COUNTS)),
    (
        TrainConfig,
        {"seed": 2**64},
        "seed must be an integer in [0, 2**63), got 18446744073709551616",
    ),
    (TrainConfig, {"momentum": 1 - 1e-9}, "in [0, 1) that float32 holds"),
    (TrainConfig, {"lr": 1e39}, "that float32 holds"),
    (TrainConfig, {"weight_decay": 1e-50}, "that float32 holds"),
    (TrainConfig, {"weight_decay": math.inf}, "weight_decay must be a number in [0, inf), got inf"),
    *((SPATConfig, {name: v}, name) for name in ("smoothing", "rectify") for v in (1, *NOT_SHARES)),
    (SPATConfig, {"rectify": 0.5, "loss": "mart"}, "rectify must be 0 for mart"),
    *((SPATConfig, {"beta": value}, "beta") for value in (-1, math.nan, math.inf, "6")),
    *((SPATConfig, {"guard": value}, "guard") for value in (1, 0, None, "yes")),
    *((Threat, {"check_logits": value}, "check_logits") for value in (0, 1, None, "no")),
    (SPATConfig, {"loss": "fgsm"}, "'trades'"),
    (SPATConfig, {"random_start": True}, "'gaussian'"),
    (SPATConfig, {"attack_mode": "training"}, "'train'"),
    (SPATConfig, {"loss": "trades", "random_start": "none"}, "random_start"),
    (
        SPATConfig,
        {"loss": "trades", "random_start": "none", "guard": False, "smoothing": 0},
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
        for name in ("baseline", "progress", "bias_decay")
        for value in (1, None, "no")
    ),
    (TrainConfig, {"schedule": "linear"}, "'cosine'"),
]


@pytest.mark.parametrize(("kind", "settings", "word"), BAD_SETTINGS)
def test_bad_settings_are_refused(kind: type, settings: dict[str, Any], word: str) -> None:
    check(ConfigError, word, lambda: kind(**NEEDED.get(kind, {}) | settings))


GOOD_SETTINGS: list[tuple[type, dict[str, Any]]] = [
    *((Mask, settings) for settings in ({"keep": 1}, {"floor": 0}, {"floor": 1}, {"classes": 2})),
    (Mask, {"score": "rms", "probes": 1}),
    (Mask, {"score": "random", "channel_axis": 1}),
    (SPATConfig, {"loss": "trades", "random_start": "none", "guard": False, "smoothing": 0.1}),
    *(
        (SPATConfig, settings)
        for settings in (
            {"loss": "pgd", "random_start": "none", "smoothing": 0},
            {"eps": 1},
            {"eps": np.float32(0.1)},
            {"eps": 8, "bounds": (0, 255)},
            {"eps": 12, "norm": "L2"},
            {"bounds": [-1, 1]},
            {"step_size": None},
            {"step_size": 1e-30},
            {"smoothing": 0},
            {"smoothing": 0.999},
            {"beta": 0},
            {"steps": 1},
            {"steps": np.int64(3)},
            {"mask": None},
            {"mask": Mask(keep=1)},
        )
    ),
]


@pytest.mark.parametrize(("kind", "settings"), GOOD_SETTINGS, ids=str)
def test_limits_themselves_are_accepted(kind: type, settings: dict[str, Any]) -> None:
    config = kind(**NEEDED.get(kind, {}) | settings)
    for name, value in settings.items():
        assert getattr(config, name) == (tuple(value) if name == "bounds" else value)


@pytest.mark.parametrize("kind", [Threat, Mask, SPATConfig, TrainConfig])
def test_settings_are_keyword_only_and_frozen(kind: type) -> None:
    with pytest.raises(TypeError, match="positional"):
        kind(1)
    with pytest.raises(TypeError, match="unexpected"):
        kind(epsilon=0.1)
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(**NEEDED.get(kind, {})), field.name, None)


@pytest.mark.parametrize("kind", [Threat, SPATConfig])
def test_a_threat_has_no_default_radius(kind: type) -> None:
    with pytest.raises(TypeError, match="'eps'"):
        kind(norm="L2")


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 8 / 255), ("L2", 0.5), ("L1", 12.0)])
def test_the_step_in_force_follows_eps_and_steps_and_an_explicit_one_stays(
    norm: str, eps: float
) -> None:
    config = SPATConfig(eps=eps, norm=norm, steps=20)
    assert (config.step_size, config.alpha) == (None, 2.5 * eps / 20)
    assert dataclasses.replace(config, steps=5).alpha == 0.5 * eps
    assert dataclasses.replace(config, eps=0.1).alpha == 2.5 * 0.1 / 20
    moved = dataclasses.replace(config, norm="L2", bounds=(-20, 20))
    assert (moved.eps, moved.alpha) == (eps, config.alpha)
    explicit = dataclasses.replace(config, step_size=0.3)
    for changes in ({"eps": 0.2}, {"norm": "L2"}, {"steps": 50}, {"smoothing": 0.2}):
        assert dataclasses.replace(explicit, **changes).alpha == 0.3
    assert dataclasses.replace(explicit, step_size=None) == config


def test_evaluations_attack_with_all_of_eps_whatever_the_training_does() -> None:
    trained = SPATConfig(
        **{"eps": 0.5, "norm": "L2", "bounds": (-1, 2), "steps": 3, "step_size": 0.01},
        **{"random_start": "gaussian", "attack_mode": "train", "loss": "trades", "beta": 1},
        **{"smoothing": 0.3, "guard": False, "mask": Mask(floor=0)},
    )
    threat = Threat(eps=0.5, norm="L2", bounds=(-1, 2))
    plain = SPATConfig(eps=0.5, norm="L2", bounds=(-1, 2), steps=50, smoothing=0)
    assert plain_pgd(trained, 50) == plain_pgd(threat, 50) == plain
    assert (plain.alpha, plain.loss, plain.masked) == (2.5 * 0.5 / 50, "pgd", False)


@pytest.mark.parametrize(
    ("mask", "masked"),
    [
        (None, False),
        (Mask(), True),
        (Mask(floor=0), True),
        (Mask(score="random", keep=0.99), True),
        (Mask(score="rms", keep=1), False),
        (Mask(floor=1), False),
    ],
    ids=str,
)
def test_a_mask_is_there_when_it_differs_from_ones(mask: Mask | None, masked: bool) -> None:
    config = SPATConfig(eps=0.3, mask=mask)
    assert config.masked == masked
    assert dataclasses.replace(config, eps=0.1).mask == mask
    assert SPATConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_what_is_not_said_of_the_attack_is_smoothed_and_guarded_without_a_mask() -> None:
    config = SPATConfig(eps=0.3)
    assert (config.norm, config.bounds, config.steps) == ("Linf", (0, 1), 10)
    assert (config.loss, config.beta, config.smoothing, config.guard) == ("pgd", 6, 0.1, True)
    assert (config.random_start, config.attack_mode, config.mask) == ("uniform", "eval", None)
    mask = Mask()
    assert (mask.score, mask.keep, mask.floor) == ("min", 0.5, 0.5)
    assert (mask.classes, mask.probes, mask.channel_axis) == (None, 2, None)
