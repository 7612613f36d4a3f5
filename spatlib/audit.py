"""How far the meaning of perturbed inputs moved, as an independent judge network reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .config import SPATConfig, plain_pgd
from .core import numpy_ops as ops
from .engines import engine_of, load_extra
from .errors import DataError, check_labels, require_integer
from .evaluate import attacked_examples


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a judge with the logits z read of x and of x', labels y; p = softmax(z).

    The judge is a network of its own: differently seeded, adversarially trained. ``drift`` alone
    favours weak attacks: compare attacks that fool their own target equally often.

    Attributes:
        count, known: All examples, and those that the judge reads correctly at x. The measures
            below are means over the known ones (NaN if there are none).
        drift: Share with argmax_k z_k(x') != y.
        evidence_lost: l_y(x) - l_y(x') with the log-odds l_k = log p_k - log(1 - p_k), in nats.
        rival_gain: l_r(x') - l_r(x) of the class r != y that is strongest at x'.
        entropy, entropy_gain: Ambiguity -sum_k p_k log p_k at x', and less that at x, in nats.
        l2: ||x' - x||_2, in the units of the inputs.
        ssim: Structural similarity of x' and x (Wang et al. 2004, scikit-image, 7 pixels wide or
            as much as there is); None if not asked for.
        read_as: K x K counts of the known examples, [label][class read at x'].
        drifted: The examples that drifted, the most certain first, by index.
    """

    count: int
    known: int
    drift: float
    evidence_lost: float
    rival_gain: float
    entropy: float
    entropy_gain: float
    l2: float
    ssim: float | None
    read_as: tuple[tuple[int, ...], ...]
    drifted: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """As plain values, NaN as None."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


def audit(
    judge: Any,
    x: Any,
    x_adv: Any,
    y: Any,
    *,
    batch_size: int = 256,
    bounds: tuple[float, float] = (0.0, 1.0),
    ssim: bool = False,
) -> Audit:
    """How far the meaning of x moved on the way to x', whoever made it: see :class:`Audit`.

    Args:
        judge: A network with logits (N, K), other than the one attacked.
        x, x_adv: Arrays or tensors (N, ...) in the judge's layout; floats in ``bounds``.
        y: Integer labels (N,).
        batch_size: Examples per pass.
        bounds: The input range, for SSIM.
        ssim: Whether to compute it, for images (needs the extra ``audit``).

    Raises:
        DataError: Shapes that do not fit each other, or labels that the judge does not know.
        BackendError: scikit-image is missing.
    """
    require_integer("batch_size", batch_size, 1)
    engine = engine_of(judge)
    before, after, labels = (np.asarray(part) for part in (x, x_adv, y))
    if before.shape != after.shape or labels.shape != before.shape[:1] or not before.size:
        raise DataError(
            f"x_adv must have the shape of x (not empty), and y one label each, got {after.shape} "
            f"and {labels.shape} for x {before.shape}: pass the same examples in the same order"
        )
    logits = [engine.logits(judge, part, batch_size) for part in (before, after)]
    similar = similarity(before, after, bounds, engine.CHANNELS_FIRST) if ssim else None
    sizes = np.linalg.norm((after.astype(float) - before).reshape(len(labels), -1), axis=1)
    return measure(logits[0], logits[1], labels, sizes, similar)


def compare_attacks(
    target: Any,
    judge: Any,
    data: Any,
    config: SPATConfig,
    *,
    count: int,
    shown: int,
    seed: int,
    ssim: bool,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the judge says of the training attack and of plain PGD at the same eps and steps.

    Args:
        target, judge: Networks.
        data: Of which the first ``count`` are attacked, in the layout of the target.
        config: The training attack.
        shown: Examples for the pictures.

    Returns:
        By attack (``"training"``, ``"pgd"``) the audit's facts and ``success``, the share of the
        target's correct examples that it fools; and, for :func:`spatlib.plots.drift`, the
        examples that drifted most under the training attack, then under PGD.
    """
    engine, reader = engine_of(target), engine_of(judge)
    facts, moved, read, worst = dict[str, Any](), {}, {}, list[int]()
    for name, attack in (("training", config), ("pgd", plain_pgd(config, config.steps))):
        found = attacked_examples(engine, target, data, attack, count, seed)
        x, x_adv, y = found["x"], found["x_adv"], found["y"]
        first, then = (np.moveaxis(v, -1, 1) if reader.CHANNELS_FIRST else v for v in (x, x_adv))
        report = audit(judge, first, then, y, bounds=config.bounds, ssim=ssim)
        right = found["clean"] == y
        fooled = right & (found["adversarial"] != y)
        facts[name] = report.as_json() | {"success": float(fooled.sum() / max(right.sum(), 1))}
        moved[name], worst = x_adv, [*worst, *report.drifted[:shown]]
        read[name] = reader.logits(judge, then).argmax(axis=1)
    chosen = list(dict.fromkeys(worst))[:shown]
    pictures = {"x": x[chosen], "y": y[chosen]}
    for name in facts:
        pictures |= {f"{name} x_adv": moved[name][chosen], f"{name} read": read[name][chosen]}
    return facts, pictures


def measure(
    clean: np.ndarray,
    moved: np.ndarray,
    y: np.ndarray,
    sizes: np.ndarray,
    similar: np.ndarray | None = None,
) -> Audit:
    """The audit of logits (N, K) at x and x', labels, and L2 and SSIM of each example (N,)."""
    classes = clean.shape[1]
    check_labels((y.min(), y.max()), classes)
    known = np.flatnonzero(clean.argmax(axis=1) == y)
    label = np.eye(classes, dtype=bool)[y[known]]
    (log_p, odds), (log_q, odds_moved) = (_evidence(z[known]) for z in (clean, moved))
    read = moved[known].argmax(axis=1)
    rival = np.where(label, -np.inf, moved[known]).argmax(axis=1)[:, None]
    gain = np.take_along_axis(odds_moved - odds, rival, axis=1)[:, 0]
    entropies = [-np.sum(np.exp(v) * v, axis=1) for v in (log_p, log_q)]
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (y[known], read), 1)
    gone = read != y[known]
    certain = np.argsort(-np.max(log_q, axis=1), kind="stable")

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else float("nan")

    return Audit(
        count=len(y),
        known=len(known),
        drift=mean(gone),
        evidence_lost=mean((odds - odds_moved)[label]),
        rival_gain=mean(gain),
        entropy=mean(entropies[1]),
        entropy_gain=mean(entropies[1] - entropies[0]),
        l2=mean(sizes[known]),
        ssim=None if similar is None else mean(similar[known]),
        read_as=tuple(map(tuple, counts.tolist())),
        drifted=tuple(known[certain[gone[certain]]].tolist()),
    )


def similarity(
    x: np.ndarray, x_adv: np.ndarray, bounds: Sequence[float], channels_first: bool
) -> np.ndarray:
    """SSIM of each pair of images (N,)."""
    metrics = load_extra("skimage.metrics", "audit")
    if x.ndim != 4:
        raise DataError(
            f"x must hold images (four axes) for SSIM, got shape {x.shape}: leave ssim out"
        )
    if channels_first:
        x, x_adv = np.moveaxis(x, 1, -1), np.moveaxis(x_adv, 1, -1)
    side = min(7, *x.shape[1:3])
    window, width = side - 1 + side % 2, bounds[1] - bounds[0]  # the window has to be odd
    settings = {"win_size": window, "channel_axis": -1, "data_range": width}
    pairs = zip(x.astype(float), x_adv.astype(float), strict=True)
    return np.array([metrics.structural_similarity(a, b, **settings) for a, b in pairs])


def _evidence(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p and the log-odds log p_k - log(1 - p_k) = z_k - log sum over j != k of exp z_j."""
    z = z.astype(np.float64)
    others = np.where(np.eye(z.shape[1], dtype=bool), -np.inf, z[:, None, :])
    return ops.log_softmax(z), z - np.logaddexp.reduce(others, axis=2)
