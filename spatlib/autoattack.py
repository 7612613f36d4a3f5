"""AutoAttack as the Adversarial Robustness Toolbox has it (ART), for networks of any engine."""

from functools import partial
from typing import Any

import numpy as np

from .config import Threat
from .core import numpy_ops as ops
from .core.ops import divisor, rivals
from .core.target import finite, objective
from .data import as_array
from .engines import engine_of, load_extra

ART = "adversarial-robustness-toolbox"
# ART's defaults: steps of Auto-PGD and DeepFool, restarts of Auto-PGD and Square, queries of Square
STEPS, RESTARTS, QUERIES = 100, 5, 5000
cross_entropy = partial(objective, ops, "apgd-ce")  # its order, which is all that ART asks for


def attack(threat: Threat, seed: int, model: Any, x: Any, y: Any) -> np.ndarray:
    """x' of Auto-PGD on cross-entropy and on the logits ratio, of DeepFool and of Square.

    Of images x and integer labels y (N,), in Linf or L2; draws follow from seed and batch.
    """
    load_extra("multiprocess", "multiprocess")
    evasion, engine = load_extra("art.attacks.evasion", ART), engine_of(model)
    x, y, vjp = as_array(x).astype(np.float32), as_array(y), partial(engine.vjp, model)
    classes = vjp(x)[0].shape[1]
    facts = {"input_shape": x.shape[1:], "nb_classes": classes, "clip_values": threat.bounds}
    facts["channels_first"] = engine.CHANNELS_FIRST
    crossed, ratio = (_estimator(vjp, loss, facts) for loss in (cross_entropy, logits_ratio))
    ball = {"norm": np.inf if threat.norm == "Linf" else 2, "eps": float(threat.eps)}
    shared = ball | {"eps_step": 2 * threat.eps, "batch_size": len(x)}
    auto = {"max_iter": STEPS, "loss_type": None, "nb_random_init": RESTARTS, "verbose": False}
    deep = {"max_iter": STEPS, "epsilon": 1e-3, "nb_grads": min(10, classes), "verbose": False}
    square = {"max_iter": QUERIES, "p_init": 0.8, "nb_restarts": RESTARTS, "verbose": False}
    apgd = partial(evasion.AutoProjectedGradientDescent, **auto, **shared)
    attacks = [apgd(crossed), apgd(ratio)] if classes > 2 else [apgd(crossed)]
    attacks.append(evasion.DeepFool(crossed, batch_size=len(x), **deep))
    attacks.append(evasion.SquareAttack(crossed, **ball, **square))
    whole, before = evasion.AutoAttack(crossed, attacks=attacks, **shared), np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed % 2**32)  # noqa: NPY002  # ART draws from the global generator
        return whole.generate(x, y)  # type: ignore[no-any-return]
    finally:
        np.random.set_state(before)  # noqa: NPY002


def logits_ratio(z: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(max over k != y of z_k - z_y) / (z_(1) - z_(3)) (N,) and its gradient in the logits."""
    eye, order = np.eye(z.shape[1]), np.argsort(-z, axis=1)
    up = ops.argmax_one_hot(rivals(ops, z, label)) - label
    down = eye[order[:, 0]] - eye[order[:, 2]]
    spread = divisor(ops, np.sum(down * z, axis=1, keepdims=True))
    ratio = np.sum(up * z, axis=1, keepdims=True) / spread
    return ratio[:, 0], (up - ratio * down) / spread


def _estimator(vjp: Any, loss: Any, facts: dict[str, Any]) -> Any:
    """Logits and gradients as ART asks for them (its own estimator for Keras is one of Keras 2)."""
    kinds = load_extra("art.estimators.classification", ART)
    gradients = load_extra("art.estimators", ART).LossGradientsMixin
    bases = kinds.BlackBoxClassifierNeuralNetwork, kinds.ClassGradientsMixin, gradients

    class Estimator(*bases):  # type: ignore[misc]
        def predict(self, x: np.ndarray, **_: Any) -> Any:
            return vjp(x)[0]

        def compute_loss(self, x: np.ndarray, y: np.ndarray, **_: Any) -> Any:
            return loss(vjp(x)[0], y)[0]

        def loss_gradient(self, x: np.ndarray, y: np.ndarray, **_: Any) -> Any:
            z, pull = vjp(x)
            return finite(ops, pull(loss(z, y)[1]))[0]

        def class_gradient(self, x: np.ndarray, label: Any = None, **_: Any) -> np.ndarray:
            """(N, K, ...), or (N, 1, ...) of one label for all; DeepFool asks for nothing else."""
            rows = np.eye(self.nb_classes)[slice(None) if label is None else [label]]
            pulled = (vjp(x)[1](np.tile(row, (len(x), 1))) for row in rows)
            return np.stack([finite(ops, grad)[0] for grad in pulled], axis=1)

    return Estimator(vjp, **facts)
