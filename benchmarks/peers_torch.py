"""Adversarial training steps in PyTorch that are not ours.

Loops written by hand, as tight as we can, and the peers that are installed (``make bench``), each
used as its documentation shows. All take one step of SGD with momentum and weight decay on
PGD-``steps`` examples with random starts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .setting import SIZES, Arm, Setting

EPS, ALPHA = SIZES["Linf"]
BETA = 6.0
Network = Callable[[Setting], nn.Module]
Batch = Callable[[Setting], tuple[Tensor, Tensor]]
Build = Callable[[], Arm]


def builders(setting: Setting, network: Network, batch: Batch) -> dict[str, Build]:
    arms: dict[str, Build] = {}

    def add(name: str, build: Callable[..., Arm], **how: bool) -> None:
        arms[name] = lambda: build(setting, network(setting), *batch(setting), **how)

    if setting.device == "cpu" and setting.precision == "bfloat16":  # whether it pays at all
        full = setting._replace(precision="float32")
        arms["by hand, float32"] = lambda: by_hand(full, network(full), *batch(full))
    add("by hand", by_hand)
    add("by hand, channels_last", by_hand, channels_last=True)
    if setting.device != "cpu":
        add("by hand, one CUDA graph, channels_last", by_hand, channels_last=True, captured=True)
    if setting.loss == "trades":
        add("by hand, clean pass at each step", by_hand, again=True)
        add(
            "by hand, clean pass at each step, channels_last",
            by_hand,
            again=True,
            channels_last=True,
        )
    if setting.compiled:
        add("by hand, compiled", by_hand, compiled=True)
        add("by hand, compiled, channels_last", by_hand, compiled=True, channels_last=True)
    if setting.loss == "pgd" and importlib.util.find_spec("torchattacks"):
        if setting.precision == "bfloat16":
            add("torchattacks, channels_last", torchattacks_pgd, channels_last=True)
        elif not setting.compiled:
            add("torchattacks", torchattacks_pgd)
    plain = (setting.loss, setting.norm, setting.precision) == ("pgd", "Linf", "float32")
    if plain and not setting.compiled:
        add("loss.backward() at each step", with_backward)
        for name, build in (
            ("foolbox", foolbox_pgd),
            ("art", art_trainer),
        ):
            if importlib.util.find_spec(name):
                add(name, build)
    return arms


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def by_hand(
    setting: Setting,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    again: bool = False,
    captured: bool = False,
) -> Arm:
    """Gradient to the input only, parameters frozen, BatchNorm in inference mode, in place.

    ``again``: TRADES with the clean pass in each step, as in the code of its authors.
    ``captured``: the whole training step is one CUDA graph.
    """
    if channels_last:
        model, x = (part.to(memory_format=torch.channels_last) for part in (model, x))
    optimizer = optimizer_of(model)
    forward = torch.compile(model, dynamic=False) if compiled else model
    kl = partial(F.kl_div, reduction="sum")

    def ascend(logits: Tensor, clean: Tensor | None) -> Tensor:
        if setting.loss != "trades":
            return F.cross_entropy(logits, y, reduction="sum")
        if again:
            with torch.no_grad():
                clean = F.softmax(forward(x), dim=1)
        return kl(F.log_softmax(logits, dim=1), clean)

    def step() -> None:
        model.eval().requires_grad_(False)
        with autocast(setting, cached=not captured):
            clean = None
            if setting.loss == "trades" and not again:
                clean = F.softmax(forward(x), dim=1)
            d = begin(setting.norm, x)
            for _ in range(setting.steps):
                z = (x + d).clamp_(0, 1).requires_grad_()
                (grad,) = torch.autograd.grad(ascend(forward(z), clean), z)
                move(setting.norm, d, grad)
            z = (x + d).clamp_(0, 1)
            model.train().requires_grad_(True)
            loss = outer(setting.loss, forward, x, z, y)
        update(optimizer, loss)

    return graph_of(step) if captured else step


def begin(norm: str, x: Tensor) -> Tensor:
    """A random start: uniform, or on the sphere."""
    eps = SIZES[norm][0]
    if norm == "Linf":
        return torch.empty_like(x).uniform_(-eps, eps)
    d = torch.randn_like(x)
    return d.mul_(eps / length(d))


def move(norm: str, d: Tensor, grad: Tensor) -> None:
    """A step along the sign and a clamp; along the direction and a scaling in L2."""
    eps, alpha = SIZES[norm]
    if norm == "Linf":
        d.add_(grad.sign_(), alpha=alpha).clamp_(-eps, eps)
    else:
        d.add_(grad.div_(length(grad)), alpha=alpha)
        d.mul_((eps / length(d)).clamp_(max=1))


def length(d: Tensor) -> Tensor:
    """In L2, (N, 1, 1, 1), and not 0."""
    return torch.linalg.vector_norm(d, dim=(1, 2, 3), keepdim=True).clamp_(min=1e-12)


def graph_of(step: Callable[[], None]) -> Arm:
    """As in PyTorch's notes: three steps on a stream of their own, then one that is recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda kept=step: graph.replay()  # it reads tensors that the step alone holds


def outer(
    name: str, forward: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, y: Tensor
) -> Tensor:
    """The losses as the authors' code has them."""
    if name == "pgd":
        return F.cross_entropy(forward(z), y)
    clean, attacked = forward(x), forward(z)
    p, log_q = F.softmax(clean, dim=1), F.log_softmax(attacked, dim=1)
    if name == "trades":
        return F.cross_entropy(clean, y) + BETA * F.kl_div(log_q, p, reduction="batchmean")
    q, label = log_q.exp(), F.one_hot(y, clean.shape[1])
    rival = (q - label).amax(dim=1)
    boosted = F.cross_entropy(attacked, y) - (1.0001 - rival + 1e-12).log().mean()
    divergence = F.kl_div(log_q, p, reduction="none").sum(dim=1)
    return boosted + BETA * (divergence * (1.0000001 - (p * label).sum(dim=1))).mean()


def with_backward(setting: Setting, model: nn.Module, x: Tensor, y: Tensor) -> Arm:
    """``loss.backward()`` in the attack too: gradients of all weights, thrown away."""
    optimizer = optimizer_of(model)

    def step() -> None:
        model.eval()
        d = torch.empty_like(x).uniform_(-EPS, EPS)
        for _ in range(setting.steps):
            z = (x + d).clamp(0, 1).requires_grad_()
            model.zero_grad()
            F.cross_entropy(model(z), y).backward()
            d = (d + ALPHA * z.grad.sign()).clamp(-EPS, EPS)
        model.train()
        update(optimizer, F.cross_entropy(model((x + d).clamp(0, 1)), y))

    return step


def torchattacks_pgd(
    setting: Setting, model: nn.Module, x: Tensor, y: Tensor, *, channels_last: bool = False
) -> Arm:
    import torchattacks

    if channels_last:  # the inputs need not be, and its PGDL2 takes views of them
        model = model.to(memory_format=torch.channels_last)
    (eps, alpha), kind = SIZES[setting.norm], {"Linf": "PGD", "L2": "PGDL2"}[setting.norm]
    how = {"eps": eps, "alpha": alpha, "steps": setting.steps, "random_start": True}
    attack, optimizer = getattr(torchattacks, kind)(model, **how), optimizer_of(model)

    def step() -> None:
        with autocast(setting):
            loss = F.cross_entropy(model(attack(x, y)), y)
        update(optimizer, loss)

    return step


def foolbox_pgd(setting: Setting, model: nn.Module, x: Tensor, y: Tensor) -> Arm:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=setting.steps, random_start=True)
    optimizer = optimizer_of(model)

    def step() -> None:
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
        _, z, _ = attack(wrapped, x, y, epsilons=EPS)
        update(optimizer, F.cross_entropy(model.train()(z), y))

    return step


def art_trainer(setting: Setting, model: nn.Module, x: Tensor, y: Tensor) -> Arm:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        setting.classes,
        optimizer_of(model),
        clip_values=(0, 1),
        device_type="cpu" if setting.device == "cpu" else "gpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=EPS,
        eps_step=ALPHA,
        max_iter=setting.steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    trainer, arrays = AdversarialTrainer(classifier, attack, ratio=1.0), (x.cpu(), y.cpu())
    images, labels = (part.numpy() for part in arrays)
    return lambda: trainer.fit(images, labels, batch_size=len(x), nb_epochs=1)


def autocast(setting: Setting, cached: bool = True) -> AbstractContextManager[None]:
    low = setting.precision == "bfloat16"
    return torch.autocast(setting.device, torch.bfloat16, enabled=low, cache_enabled=cached)
