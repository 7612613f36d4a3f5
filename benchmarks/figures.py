"""The figures and numbers of docs/method.md, on digits: python -m benchmarks.figures

Takes the networks of ``python -m benchmarks.evidence digits`` or trains them. Needs Matplotlib.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from spatlib import SPATConfig
from spatlib.audit import compare_attacks
from spatlib_torch import perturb, shared_mask

from .evidence import JUDGE_SEED, Experiment
from .evidence_arms import PLAIN, control, mask
from .harness import table

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
SHOWN, AUDITED = 4, 450
SIZES = np.linspace(0.05, 0.5, 10)  # eps
ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "PGD": (PLAIN, ""), "mask min": (mask(), ""), "mask mean": (mask("mean"), ""),
    "mask neutral": (mask("neutral"), ""), "mask random": (mask(), "random"),
    "mask min inverted": (mask(), "inverted"),
}  # fmt: skip


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    digits = Experiment("digits", None, None, None)
    target, judge = (digits.trained("pgd", seed).model.eval() for seed in (0, JUDGE_SEED))
    x, y = (torch.as_tensor(part) for part in digits.test)
    sheet(target, x[:SHOWN], y[:SHOWN], digits.setting.config)
    drift(target, judge, digits)
    print(common_gradient(target, x))


def sheet(model: nn.Module, x: Tensor, y: Tensor, config: SPATConfig) -> None:
    """A row per example: image, saliency for each class, shared mask, two perturbations."""
    masked, plain = (replace(config, **settings) for settings in (mask(), PLAIN))
    moved = [perturb(model, x, y, c, start=torch.zeros_like(x)) - x for c in (plain, masked)]
    saliency = [grad.abs().sum(dim=1) for grad in centred_gradients(model, x)]
    columns = {"image": x[:, 0], **{f"class {k}": s for k, s in enumerate(saliency)},
               "mask": shared_mask(model, x, y, masked)[:, 0],
               "PGD": moved[0][:, 0], "masked": moved[1][:, 0]}  # fmt: skip
    figure = Figure(figsize=(len(columns), len(x) * 1.1))
    for number, axes in enumerate(figure.subplots(len(x), len(columns)).flat):
        row, column = divmod(number, len(columns))
        name, images = list(columns.items())[column]
        signed = {"cmap": "RdBu", "vmin": -config.eps, "vmax": config.eps}
        axes.imshow(images[row], **(signed if name in ("PGD", "masked") else {"cmap": "gray_r"}))
        axes.set_axis_off()
        if row == 0:
            axes.set_title(name, fontsize=8)
    figure.savefig(FOLDER / "saliency.png", dpi=100, bbox_inches="tight")


def drift(target: nn.Module, judge: nn.Module, digits: Experiment) -> None:
    """How often the judge reads another class, against eps and against the attack's success."""
    figure = Figure(figsize=(9, 3.5))
    panels = figure.subplots(1, 2, sharey=True)
    rows = []
    for name, (settings, kind) in ATTACKS.items():
        found = []
        for eps in SIZES:
            config = replace(digits.setting.config, eps=eps, step_size=None, steps=10, **settings)
            with control(kind, seed=0):
                facts, _ = compare_attacks((target, "torch"), (judge, "torch"), digits.test, config,
                                           count=AUDITED, shown=0, seed=0, ssim=False)  # fmt: skip
            found.append((eps, facts["training"]["success"], facts["training"]["drift"]))
        rows += [{"attack": name, "eps": f"{eps:.2f}", "success": f"{success:.1%}",
                  "drift": f"{moved:.1%}"} for eps, success, moved in found]  # fmt: skip
        for axes, column in zip(panels, (0, 1), strict=True):
            values = [row[column] for row in found]
            axes.plot(values, [row[2] for row in found], marker=".", label=name)
    panels[0].set(xlabel="eps", ylabel="drift: read as another class by the judge")
    panels[1].set(xlabel="share of the target's correct examples that are fooled")
    panels[1].legend()
    figure.savefig(FOLDER / "drift.png", dpi=100, bbox_inches="tight")
    print(table(rows))


def centred_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Of z_k - mean_j z_j for each class k, shaped like x."""
    leaf = x.clone().requires_grad_()
    z = model(leaf)
    return [torch.autograd.grad((z[:, k] - z.mean(dim=1)).sum(), leaf, retain_graph=True)[0]
            for k in range(z.shape[1])]  # fmt: skip


def common_gradient(model: nn.Module, x: Tensor) -> str:
    """What a mask by the sign of the mean logit would have to go by."""
    leaf = x.clone().requires_grad_()
    (common,) = torch.autograd.grad(model(leaf).mean(dim=1).sum(), leaf)
    lengths = [grad.flatten(1).norm(dim=1) for grad in centred_gradients(model, x)]
    share = common.flatten(1).norm(dim=1) / torch.stack(lengths).mean(dim=0)
    return (f"gradient of the mean logit: {share.median():.1%} of the mean length of the centred "
            f"class gradients (median over {len(x)} examples)")  # fmt: skip


if __name__ == "__main__":
    main()
