"""The figures and numbers of docs/method.md.

    python -m benchmarks.figures digits
    python -m benchmarks.figures cifar10-narrow --data-dir DIR

Takes the networks of ``python -m benchmarks.evidence`` or trains them. Needs Matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from spatlib import SPATConfig
from spatlib.audit import compare_attacks
from spatlib.evaluate import attacked_examples
from spatlib_torch import engine, perturb, shared_mask

from .evidence import Experiment, experiment, parser
from .evidence_arms import PLAIN, control, mask
from .harness import table

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
SHOWN, AUDITED, STEPS = 4, 450, 10
SIZES = np.linspace(1 / 3, 10 / 3, 10)  # in units of the threat model's eps
COMPARED = 0.4  # the success at which drifts are compared
ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "PGD": (PLAIN, ""),
    "smooth 0.3 guarded": ({**PLAIN, "smoothing": 0.3}, ""),
    "mask min": (mask(), ""),
    "mask mean": (mask("mean"), ""),
    "mask neutral": (mask("neutral"), ""),
    "mask random": (mask("random"), ""),
    "mask min inverted": (mask(), "inverted"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    runs = experiment(parser("figures", __doc__).parse_args(arguments))
    target = runs.trained("pgd", 0).model.eval()
    FOLDER.mkdir(exist_ok=True)
    images, labels = inputs(target, runs, AUDITED)
    sheet(target, images[:SHOWN], labels[:SHOWN], runs)
    for arm in ("standard", "pgd"):
        for seed in range(runs.setting.seeds):
            print(arm, seed, common_gradient(runs.trained(arm, seed).model.eval(), images, labels))
    drift(target, runs)


def inputs(model: nn.Module, runs: Experiment, count: int) -> tuple[Tensor, Tensor]:
    """The first test images in their own units, (N, C, H, W), and their labels."""
    config = runs.setting.config
    found = attacked_examples(engine, model, runs.test, config, count)
    return torch.as_tensor(found["x"]).movedim(-1, 1), torch.as_tensor(found["y"])


def sheet(model: nn.Module, x: Tensor, y: Tensor, runs: Experiment) -> None:
    """A row per example: image, saliency for each class, shared mask, two perturbations."""
    config: SPATConfig = runs.setting.config
    masked, plain = (replace(config, **settings) for settings in (mask(), PLAIN))
    moved = [perturb(model, x, y, c, start=torch.zeros_like(x)) - x for c in (plain, masked)]
    saliency = gradients(model, x, centred=True).abs().sum(dim=2, keepdim=True)
    columns = {
        "image": x,
        **{f"class {k}": s for k, s in enumerate(saliency)},
        "mask": shared_mask(model, x, y, masked),
        "PGD": moved[0],
        "masked": moved[1],
    }
    figure = Figure(figsize=(len(columns), len(x) * 1.1))
    for number, axes in enumerate(figure.subplots(len(x), len(columns)).flat):
        row, column = divmod(number, len(columns))
        name, images = list(columns.items())[column]
        image = images[row].movedim(0, -1)
        if name in ("PGD", "masked"):
            axes.imshow(image.mean(dim=-1), cmap="RdBu", vmin=-config.eps, vmax=config.eps)
        else:
            axes.imshow(image, cmap="gray_r")
        axes.set_axis_off()
        if row == 0:
            axes.set_title(name, fontsize=8)
    figure.savefig(FOLDER / f"saliency_{runs.name}.png", dpi=100, bbox_inches="tight")


def drift(target: nn.Module, runs: Experiment) -> None:
    """How often the judge reads another class, against eps and against the attack's success."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    networks, threat, rows = (target, runs.judge.model), runs.setting.config, []
    high = threat.bounds[1] - threat.bounds[0]
    for name, (settings, kind) in ATTACKS.items():
        found = []
        for eps in np.minimum(threat.eps * SIZES, high):
            config = replace(threat, eps=eps, step_size=None, steps=STEPS, **settings)
            with control(kind):
                how = {"count": AUDITED, "shown": 0, "seed": 0, "ssim": False}
                facts, _ = compare_attacks(networks, runs.test, config, **how)
            found.append((eps, facts["training"]["success"], facts["training"]["drift"]))
        sizes, successes, drifts = np.array(found).T
        needed = np.interp(COMPARED, successes, sizes, right=np.nan)  # nan: never fools so many
        rows.append(
            {
                "attack": name,
                f"eps that fools {COMPARED:.0%}": f"{needed:.3f}",
                "drift there": f"{np.interp(needed, sizes, drifts):.1%}",
            }
        )
        for axes, along in zip(panels, (sizes, successes), strict=True):
            axes.plot(along, drifts, marker=".", label=name)
    panels[0].set(xlabel="eps", ylabel="drift: the judge reads another class")
    panels[1].set(xlabel="success: share of the target's correct examples that are fooled")
    panels[1].legend()
    figure.savefig(FOLDER / f"drift_{runs.name}.png", dpi=100)
    print(table(rows))


def gradients(model: nn.Module, x: Tensor, *, centred: bool) -> Tensor:
    """Of z_k, or z_k - mean_j z_j, for each class k: (K, N, C, H, W)."""
    leaf = x.clone().requires_grad_()
    z = model(leaf)
    z = z - z.mean(dim=1, keepdim=True) if centred else z
    return torch.stack(
        [
            torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0]
            for column in z.unbind(dim=1)
        ]
    )


def common_gradient(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """What a mask by the sign of the mean logit, or of all margins, would have to go by."""
    own, centred = (gradients(model, x, centred=chosen) for chosen in (False, True))
    share = own.mean(dim=0).flatten(1).norm(dim=1) / centred.flatten(2).norm(dim=2).mean(dim=0)
    agree = (own > 0).all(dim=0) | (own < 0).all(dim=0)
    margins = own - own[y, torch.arange(len(x))]
    margins[y, torch.arange(len(x))] = margins.sum(dim=0)  # of the label itself: any that agrees
    rivals = (margins > 0).all(dim=0) | (margins < 0).all(dim=0)
    return (
        f"gradient of the mean logit: {share.median():.1%} of the mean length of the centred "
        f"class gradients (median over {len(x)} examples); all logits agree in sign at "
        f"{agree.float().mean():.2%} of the inputs' numbers, the margins to all rivals at "
        f"{rivals.float().mean():.1%}"
    )


if __name__ == "__main__":
    main()
