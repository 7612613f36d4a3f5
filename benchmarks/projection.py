"""The exact projections onto box and ball, against the usual scale-then-clip (inexact).

``python -m benchmarks.projection``: (128, 3072) float32 on the CPU, one thread, and beside one
attack step of PreActResNet-18 on the same batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from spatlib.core.feasible import project
from spatlib_torch import ops
from spatlib_torch.models import MODELS

from .harness import hardware, interleaved, ratios, save, table

SHAPE = (128, 3, 32, 32)
EPS = {"L2": 0.5, "L1": 12.0}
POWER = {"L2": 2, "L1": 1}


def arms(norm: str, outside: float) -> dict[str, Callable[[], Tensor]]:
    """Of perturbations ``outside`` times as long as eps, in the box of inputs and a 0.5-1 mask."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.rand(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    mask = torch.where(torch.rand((*SHAPE[:1], 1, *SHAPE[2:]), generator=generator) < 0.5, 1.0, 0.5)
    eps, p = EPS[norm], POWER[norm]
    lower, upper = torch.maximum(-x, -eps * mask), torch.minimum(1 - x, eps * mask)
    d = noise / noise.flatten(1).norm(p, 1)[:, None, None, None] * eps * outside

    def scale_then_clip() -> Tensor:
        length = d.flatten(1).norm(p, 1)[:, None, None, None]
        return torch.clamp(d * torch.clamp(eps / length, max=1.0), lower, upper)

    return {
        "scale, then clip": scale_then_clip,
        "exact": lambda: project(ops, d, lower, upper, eps, norm),
    }


def attack_step() -> Callable[[], object]:
    """One gradient to the input of PreActResNet-18."""
    torch.manual_seed(0)
    model = MODELS["preact_resnet18"](SHAPE[1:], 10).eval().requires_grad_(False)
    x, y = torch.rand(SHAPE), torch.randint(10, SHAPE[:1])

    def run() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y), leaf)[0]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # After a model's pass, as in training: the C library then keeps freed memory, and no arm pays
    # for pages that the kernel hands out anew.
    times, _ = interleaved({"attack step": attack_step()}, 3, 1)
    whole = 1e3 * min(times["attack step"])
    rows = []
    for norm in EPS:
        for outside in (1.25, 3.0):
            times, _ = interleaved(arms(norm, outside), options.rounds, 3)
            for name, row in ratios(times, "scale, then clip").items():
                rows.append(
                    {
                        "norm": norm,
                        "||d|| / eps": outside,
                        "projection": name,
                        "ms": round(row["ms"], 2),
                        "ratio": round(row["ratio"], 1),
                        "quartiles": f"{row['low']:.1f}-{row['high']:.1f}",
                        "share of an attack step": f"{row['ms'] / whole:.2%}",
                    }
                )
    print(table(rows))
    print(f"attack step of PreActResNet-18: {whole:.0f} ms")
    save(
        "projection_cpu",
        {
            "hardware": hardware(),
            "threads": options.threads,
            "shape": SHAPE,
            "attack_step_ms": whole,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
