"""How far the meaning of perturbed inputs moved, as an independent judge network reads them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .config import SPATConfig, plain_pgd
from .core import numpy_ops as ops
from .core.ops import example_axes, rivals
from .core.target import check_mass
from .data import as_array
from .engines import engine_of, load_extra
from .errors import LEAVE, check_batch, check_range, checked, classes_of, expect
from .evaluate import attacked_examples
from .report import ATTACKED


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a judge with the logits z read of x and of x', labels y; p = softmax(z).

    The judge is a network of its own: differently seeded, adversarially trained. ``drift`` alone
    favours weak attacks: compare attacks that fool their own target equally often.
    """

    count: int  # all examples
    known: int  # those read correctly at x: the measures are their means (NaN if there are none)
    drift: float  # share with argmax_k z_k(x') != y
    evidence_lost: float  # l_y(x) - l_y(x') with l_k = log p_k - log(1 - p_k), in nats
    rival_gain: float  # l_r(x') - l_r(x) of the class r != y that is strongest at x'
    entropy: float  # ambiguity -sum_k p_k log p_k at x', in nats
    entropy_gain: float  # that at x' less that at x
    l2: float  # ||x' - x||_2, in the units of the inputs
    ssim: float | None = None  # structural similarity of x' and x (Wang et al. 2004), if asked for
    read_as: tuple[tuple[int, ...], ...]  # K x K counts of the known, [label][class read at x']
    drifted: tuple[int, ...]  # indices of those that drifted, the most certain first

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
    check_logits: bool = True,
) -> Audit:
    """How far the meaning of x moved on the way to x', whoever made it: see :class:`Audit`.

    Args:
        judge: A network with logits (N, K), other than the one attacked.
        x, x_adv: Arrays or tensors (N, ...) in the judge's layout; floats in ``bounds``.
        y: Integer labels (N,).
        batch_size: Examples per pass.
        bounds, ssim: The input range, and whether to compute SSIM of images with it, in windows of
            at most 7 pixels (scikit-image; BackendError if it is missing).
        check_logits: Refuse a judge whose outputs at x look like probabilities.

    DataError for inputs or labels that do not fit, or a judge that returns probabilities.
    """
    batch_size = checked("batch_size", batch_size, 1)
    engine = engine_of(judge)
    x, x_adv, y = map(as_array, (x, x_adv, y))
    for name, part in (("x", x), ("x_adv", x_adv)):
        check_batch(part, y, name)
        check_range((part.min(), part.max()), (-np.inf, np.inf), name, LEAVE)
    expect(y.ndim == 1, f"y must be (N,), got shape {y.shape}: pass y.argmax(axis=1) of rows")
    got = f"{x_adv.shape}: pass the same examples in each"
    expect(x.shape == x_adv.shape, f"x_adv must have the shape of x, {x.shape}, got {got}")
    z, z_adv = (engine.logits(judge, part, batch_size).astype(float) for part in (x, x_adv))
    count, known = len(y), np.flatnonzero(z.argmax(axis=1) == y)
    eye = np.eye(classes_of(z, checked("check_logits", check_logits, bool)))
    check_mass((y.min(), y.max()), (0, len(eye) - 1))
    x, x_adv, y, z, z_adv = (part[known] for part in (x, x_adv, y, z, z_adv))
    label, read = eye[y], z_adv.argmax(axis=1)
    rival = ops.argmax_one_hot(rivals(ops, z_adv, label))
    log_p, log_q = ops.log_softmax(z), ops.log_softmax(z_adv)
    before, after = (-np.sum(np.exp(v) * v, axis=1) for v in (log_p, log_q))

    def odds(z: np.ndarray, of: np.ndarray) -> Any:
        return np.sum(z * of, axis=1) - ops.logsumexp(rivals(ops, z, of))

    found = {"drift": read != y, "entropy": after, "entropy_gain": after - before}
    found["evidence_lost"] = odds(z, label) - odds(z_adv, label)
    found["rival_gain"] = odds(z_adv, rival) - odds(z, rival)
    found["l2"] = np.sqrt(np.sum((x_adv.astype(float) - x) ** 2, axis=example_axes(x)))
    if ssim:
        metrics, first = load_extra("skimage.metrics", "scikit-image"), engine.CHANNELS_FIRST
        expect(x.ndim == 4, f"x must hold images for SSIM, got shape {x.shape}: leave ssim out")
        side = min(7, *(x.shape[2:] if first else x.shape[1:3]))
        how = {"win_size": side - 1 + side % 2, "channel_axis": 0 if first else -1}  # odd sizes
        how["data_range"] = bounds[1] - bounds[0]
        pairs = zip(x.astype(float), x_adv.astype(float), strict=True)
        found["ssim"] = np.array([metrics.structural_similarity(*pair, **how) for pair in pairs])
    means = {name: float(v.mean()) if len(known) else np.nan for name, v in found.items()}
    order = np.argsort(-log_q.max(axis=1), kind="stable")  # the most certain first
    read_as = tuple(map(tuple, (label.T @ eye[read]).astype(int).tolist()))
    drifted = tuple(known[order][(read != y)[order]].tolist())
    return Audit(count=count, known=len(known), read_as=read_as, drifted=drifted, **means)


def compare_attacks(
    networks: Any, data: Any, config: SPATConfig, count: int, shown: int, seed: int, ssim: bool
) -> tuple[dict[str, Any], tuple[np.ndarray, list[Any]]]:
    """What the judge of ``networks`` says of attacks on their first; what :func:`drift` draws."""
    target, judge = networks
    engine, reader = engine_of(target), engine_of(judge)
    facts, columns, worst = dict[str, Any](), list[Any](), list[int]()
    own: Any = {"bounds": config.bounds, "ssim": ssim, "check_logits": config.check_logits}
    for name, attack in {"training": config, "pgd": plain_pgd(config, config.steps)}.items():
        found = attacked_examples(engine, target, data, attack, count, seed)
        y, pair = found["y"], (found["x"], found["x_adv"])
        inputs = [np.moveaxis(v, -1, 1) if reader.CHANNELS_FIRST else v for v in pair]
        report = audit(judge, inputs[0], inputs[1], y, **own)
        fooled = (found["adversarial"] != y)[found["clean"] == y]
        facts[name] = report.as_json() | {"success": float(fooled.sum() / max(len(fooled), 1))}
        head = f"{ATTACKED[name]}\nsuccess {facts[name]['success']:.1%}, drift {report.drift:.1%}"
        for title, x, part in zip(("input", head), pair, inputs, strict=True):
            log_p = ops.log_softmax(reader.logits(judge, part).astype(float))
            columns.append((title, x, log_p.argmax(axis=1), np.exp(log_p.max(axis=1))))
        worst += report.drifted[:shown]
    del columns[2]  # the input again
    chosen = list(dict.fromkeys(worst))[:shown]
    return facts, (y[chosen], [(head, *(v[chosen] for v in rest)) for head, *rest in columns])
