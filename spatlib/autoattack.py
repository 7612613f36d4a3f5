"""AutoAttack as the Adversarial Robustness Toolbox has it (ART), for networks of any engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .config import Threat
from .engines import engine_of, load_extra

# ART's defaults: steps of Auto-PGD and DeepFool, restarts of Auto-PGD and Square, queries of Square
STEPS, RESTARTS, QUERIES = 100, 5, 5000
Pullback = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def autoattack(
    pullback: Pullback,
    threat: Threat,
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    *,
    channels_first: bool,
    batch_size: int = 256,
    steps: int = STEPS,
    restarts: int = RESTARTS,
    queries: int = QUERIES,
) -> np.ndarray:
    """x' of ART's AutoAttack: Auto-PGD on cross-entropy and on the logits ratio, DeepFool, Square.

    Args:
        pullback: (x, cotangent (N, K)) -> the logits (N, K) and the gradient of the sum of
            cotangent * logits with respect to x, all in NumPy.
        threat: eps, norm (Linf or L2) and bounds.
        x, y: Inputs (N, ...) and integer labels (N,).
        classes: K.
        channels_first: Layout of images.

    Raises:
        BackendError: ART or multiprocess is not installed.
    """
    load_extra("multiprocess", "autoattack")
    evasion = load_extra("art.attacks.evasion", "autoattack")
    ball = {"norm": np.inf if threat.norm == "Linf" else 2, "eps": float(threat.eps)}
    shared: dict[str, Any] = ball | {"eps_step": 2 * threat.eps, "batch_size": batch_size}
    facts = (pullback, threat.bounds, x.shape[1:], classes, channels_first)
    crossed, ratio = (_estimator(*facts, loss) for loss in (cross_entropy, logits_ratio))
    auto = {"max_iter": steps, "loss_type": None, "nb_random_init": restarts, "verbose": False}
    deep = {"max_iter": steps, "epsilon": 1e-3, "nb_grads": min(10, classes), "verbose": False}
    square = {"max_iter": queries, "p_init": 0.8, "nb_restarts": restarts, "verbose": False}
    apgd = evasion.AutoProjectedGradientDescent
    estimators = (crossed, ratio) if classes > 2 else (crossed,)
    attacks = [apgd(estimator=estimator, **auto, **shared) for estimator in estimators]
    attacks.append(evasion.DeepFool(crossed, batch_size=batch_size, **deep))
    attacks.append(evasion.SquareAttack(crossed, **ball, **square))
    attack = evasion.AutoAttack(estimator=crossed, attacks=attacks, **shared)
    found: np.ndarray = attack.generate(x=x.astype(np.float32), y=y)
    return found


def attack(threat: Threat, model: Any, x: Any, y: Any, **settings: Any) -> np.ndarray:
    """:func:`autoattack` on a batch of tensors, as an attack of :func:`spatlib.evaluate`."""
    engine = engine_of(model)
    inputs, labels = (np.asarray(part.cpu() if hasattr(part, "cpu") else part) for part in (x, y))

    def pullback(at: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z, pull = engine.vjp(model, at)
        return z, pull(cotangent)

    settings |= {"classes": engine.vjp(model, inputs[:1])[0].shape[1]}
    settings |= {"channels_first": engine.CHANNELS_FIRST}
    return autoattack(pullback, threat, inputs, labels, **settings)


def cross_entropy(z: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log p_y (N,) and its gradient in the logits (N, K)."""
    centred = z - z.max(axis=1, keepdims=True)
    log_p = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return -np.sum(label * log_p, axis=1), np.exp(log_p) - label


def logits_ratio(z: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(max over k != y of z_k - z_y) / (z_(1) - z_(3)) (N,) and its gradient in the logits."""
    eye, order = np.eye(z.shape[1]), np.argsort(-z, axis=1)
    rival = eye[np.argmax(np.where(label > 0, -np.inf, z), axis=1)]
    up, down = rival - label, eye[order[:, 0]] - eye[order[:, 2]]
    top, bottom = (up * z).sum(axis=1, keepdims=True), (down * z).sum(axis=1, keepdims=True)
    bottom = np.where(bottom > 0, bottom, 1.0)
    return (top / bottom)[:, 0], (bottom * up - top * down) / bottom**2


class _Calls:
    """Logits and gradients as ART asks for them (its own estimator for Keras is one of Keras 2)."""

    pullback: Pullback
    loss: Any
    nb_classes: int

    def predict(self, x: np.ndarray, batch_size: int = 128, **_: Any) -> np.ndarray:
        return self.pullback(x, np.zeros((len(x), self.nb_classes)))[0]

    def compute_loss(self, x: np.ndarray, y: np.ndarray, **_: Any) -> np.ndarray:
        value: np.ndarray = self.loss(self.predict(x), y)[0]
        return value

    def loss_gradient(self, x: np.ndarray, y: np.ndarray, **_: Any) -> np.ndarray:
        return self.pullback(x, self.loss(self.predict(x), y)[1])[1]

    def class_gradient(self, x: np.ndarray, label: Any = None, **_: Any) -> np.ndarray:
        """(N, K, ...), or (N, 1, ...) of one label for all; DeepFool asks for nothing else."""
        wanted = range(self.nb_classes) if label is None else [label]
        rows = [np.tile(np.eye(self.nb_classes)[k], (len(x), 1)) for k in wanted]
        return np.stack([self.pullback(x, row)[1] for row in rows], axis=1)

    def fit(self, x: Any, y: Any, **_: Any) -> None:
        raise NotImplementedError

    def get_activations(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def _estimator(
    pullback: Pullback,
    bounds: tuple[float, float],
    shape: tuple[int, ...],
    classes: int,
    channels_first: bool,
    loss: Any,
) -> Any:
    mixins = load_extra("art.estimators.classification.classifier", "autoattack")
    parts = load_extra("art.estimators.estimator", "autoattack")
    bases = (
        _Calls,
        mixins.ClassGradientsMixin,
        mixins.ClassifierMixin,
        parts.LossGradientsMixin,
        parts.NeuralNetworkMixin,
        parts.BaseEstimator,
    )
    kind: Any = type("Estimator", bases, {"input_shape": shape})
    estimator = kind(model=pullback, clip_values=bounds, channels_first=channels_first)
    estimator.pullback, estimator.loss, estimator.nb_classes = pullback, loss, classes
    return estimator
