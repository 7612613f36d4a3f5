"""The PyTorch engine: what :class:`spatlib.engines.Engine` says of each function."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import get_num_threads as threads  # noqa: F401  # an engine has it
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from spatlib.config import SPATConfig, Threat, TrainConfig, lr_factor
from spatlib.core import survivors as core
from spatlib.core.calls import alone
from spatlib.core.target import hard_labels
from spatlib.data import as_array, fingerprint, is_map, is_pair, pairs
from spatlib.errors import asking, check_images, checked, require
from spatlib.evaluate import Evaluation
from spatlib.monitor import Monitor

from . import attack, ops
from .distributed import agreeing, begin_alike, gathered, team, together, versions  # noqa: F401
from .graphs import compiled, uncompiled
from .loaders import Batches, placed
from .loop import Loop
from .models import MODELS
from .state import attack_state, bare, keeping_globals, load_weights, tensors, weights  # noqa: F401

CHANNELS_FIRST = True


def build_model(name: str, seed: int, **network: Any) -> nn.Module:
    """A network by name; the global generator stays as it was."""
    build = MODELS[checked("model", name, tuple(MODELS))]
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The first convolution gives its output this format, and so do the layers after it.
        return build(**network).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


@torch.inference_mode(False)
def fit(
    model: nn.Module, data: Any, config: SPATConfig, monitor: Monitor, optimizer: Any = None
) -> list[dict[str, float]]:
    """Train in place; after a DataError the model is as it was after its last whole epoch."""
    training = monitor.training
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # as gradients are added up here
    device = placed(model, training.device)
    batches = Batches(data, training.batch_size, model, device, config.bounds)
    batches.workers = training.num_workers
    what = f"hold an example for each of {batches.size} processes"
    require(batches.count is None or len(batches) > 0, "data", what, batches.count)
    if monitor.ordinary:  # cross-entropy, whatever the loss
        config = replace(config, loss="pgd", rectify=0)
    globals_kept = keeping_globals(device, training.deterministic)
    with globals_kept as undo, monitor.progress(training.epochs * len(batches)) as bar:
        cudnn = torch.backends.cudnn  # the quickest of its algorithms for each shape
        undo.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
        cudnn.benchmark = not cudnn.deterministic
        if is_pair(data):  # all before anything changes
            check(model, batches.data, config, training)
        plan, writes = replace(training, device=None, progress=False), monitor.run is not None
        named = {name: t for name, t in tensors(model).items() if not is_lazy(t)}
        shapes = [(name, t.shape, t.dtype, t.requires_grad) for name, t in named.items()]
        settings = plan, config, writes, monitor.validate is not None
        _check_alike(data, device, settings=settings, model=shapes)
        begin_alike(bare(model))
        inner = bare(model, compiled=True)
        if training.compile and "forward" not in vars(inner):  # else its owner compiled it
            vars(inner)["forward"] = compiled(inner.forward)
            undo.callback(vars(inner).pop, "forward")
        with alone(bare(model)):  # as an attack in another thread changes flags for a while
            for module in model.modules():
                undo.callback(setattr, module, "training", module.training)
            if not any(module.training for module in bare(model).modules()):
                model.train()  # else its owner chose what is in inference mode
            for module in model.modules():  # as in Keras, where trainable=False does it
                own = [p.requires_grad for p in module.parameters()]
                for part in module.modules() if own and not any(own) else ():
                    part.training &= not [*part.buffers(recurse=False)]
            made = _optimizer(model, training, optimizer, training.epochs * len(batches))
            loop = Loop(model, batches, config, *made, monitor, bar)
        return loop.run()


def _check_alike(data: Any, device: torch.device, **facts: object) -> None:
    """ConfigError unless all processes have the same data and facts, by their texts."""
    if team()[1] > 1:
        known: Any = fingerprint(data)
        if is_map(data) and not is_pair(data):  # labels of a few items
            rows = np.linspace(0, len(data) - 1, 8, dtype=int).tolist()
            with keeping_globals(device):  # transforms draw from them
                known["labels"] = [y for _, y, *_ in pairs(data[row] for row in rows)]
        what = "be the same in every process, as each takes its rows of a batch"
        for name, value in {"data": known, **facts}.items():
            require(versions(value, device) == 1, name, what, value)


def _optimizer(
    model: nn.Module, training: TrainConfig, make: Any, steps: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """The one asked for, else SGD, of the parameters to train; its own scheduler, else ours."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    known = bool(parameters) and not any(map(is_lazy, parameters))
    what = "have parameters to train (set requires_grad) with shapes (call it on a batch first)"
    require(known, "model", what, parameters)
    groups: Any = parameters
    half, what = training.precision == "float16", "have weights of float32 for precision 'float16'"
    require(not half or all(p.dtype != torch.float16 for p in parameters), "model", what, "float16")
    if ours := make is None:
        settings = {name: getattr(training, name) for name in ("lr", "momentum", "weight_decay")}
        make = partial(torch.optim.SGD, fused=True, **settings)
        if not training.bias_decay:
            flat, others = ([p for p in parameters if (p.ndim < 2) is one] for one in (True, False))
            groups = [{"params": others}, {"params": flat, "weight_decay": 0.0}]
    what = "be a function from parameters to a torch.optim.Optimizer, e.g. torch.optim.AdamW"
    with asking("optimizer", what):
        made = make(groups)
    made, scheduler = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    require(isinstance(made, torch.optim.Optimizer), "optimizer", what, made)
    held = {p for group in made.param_groups for p in group["params"]}
    what = "be made of the parameters that its function is given, and of no others"
    require(held <= {*parameters}, "optimizer", what, made)
    if scheduler is not None:
        fits = isinstance(scheduler, LRScheduler) and scheduler.optimizer is made
        fits &= not isinstance(scheduler, ReduceLROnPlateau)  # which needs a measure in its steps
        what = "return beside it an LRScheduler of it that is stepped after each batch"
        require(fits, "optimizer", what, scheduler)
        what = "be 'constant' for an optimizer with a scheduler of its own"
        require(training.schedule == "constant", "schedule", what, training.schedule)
    closure = signature(made.step).parameters.get("closure")
    what = "step without a closure, which would have to attack and descend several times a step"
    require(closure is None or closure.default is None, "optimizer", what, type(made).__name__)
    for p in parameters if ours and half else ():
        # Fused SGD would take unset memory for it after a first step that is left out.
        made.state[p]["momentum_buffer"] = torch.zeros_like(p)
    factor = partial(lr_factor, training.schedule, steps=steps)
    return made, scheduler or LambdaLR(made, factor)


def survivors(
    model: nn.Module, data: Any, evaluation: Evaluation, batch_size: int, device: str | None
) -> Iterator[tuple[Tensor, int, dict[str, core.Verdict]]]:
    """See :class:`spatlib.engines.Engine`."""
    threat, separable, found = evaluation.threat, None, dict[str, Any]()
    batches = Batches(data, batch_size, model, placed(model, device), threat.bounds)
    for x, y, classes, first, counted in _looked_through(model, batches.shares(), batches, threat):
        y = hard_labels(ops, y)
        starts = evaluation.starts(first, x.shape, ops.CHANNEL_AXIS)
        begins = (torch.as_tensor(start).to(x.dtype).to(x.device) for start in starts)
        with attack_state(model, fork=x.device) as module:
            predict = torch.no_grad()(partial(ops.logits_of, module))
            net = core.Attacked(ops, partial(attack.vjp, module), predict, threat)
            if len(x):  # else only other processes have some left
                clean = predict(x)
                label, foreign = ops.one_hot(y, clean), partial(_foreign, module)
                if separable is None and len(x) > 1:
                    with uncompiled(), attack_state(module):
                        separable = core.separable(net, x, clean)
                batch, how = (x, y, clean, label), (separable, partial(_called, len(x)), foreign)
                found = core.survivors(net, evaluation, batch, begins, *how)
        for key, verdict in found.items() if batches.size > 1 else ():
            right, sound, x_adv = (torch.as_tensor(part, device=x.device) for part in verdict)
            found[key] = core.Verdict(gathered(right[:counted]), gathered(sound[:counted]), x_adv)
        yield gathered(y[:counted]), classes, found


def _called(whole: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it, with a compiled network as it is written where some examples are left out."""
    with uncompiled(any(len(v) < whole for v in arguments if isinstance(v, Tensor))):
        return function(*arguments)


def _foreign(module: nn.Module, key: str, call: Any, x: Tensor, y: Tensor) -> Tensor:
    """x' of a user's attack."""
    with attack_state(module, fork=x.device, foreign=True):
        x_adv = call(module, x.clone(), y.clone())
    x_adv = torch.as_tensor(x_adv) if isinstance(x_adv, np.ndarray) else x_adv
    return ops.as_tensor(f"x_adv of {key}", x_adv).to(x)


def check(model: nn.Module, data: Any, threat: Threat, training: TrainConfig) -> None:
    """See :class:`spatlib.engines.Engine`."""
    device = placed(model, training.device)
    _check_alike(data, device)
    batches = Batches(data, training.batch_size, model, device, threat.bounds)
    with agreeing(device):
        parts = _looked_through(model, batches, batches, threat)
        for x, *_ in islice(parts, None if is_pair(data) else 1):
            if training.augment != "none":
                check_images(x.shape)


def _looked_through(
    model: nn.Module, parts: Iterable[Any], batches: Batches, threat: Threat
) -> Iterator[Any]:
    """One pass of what :func:`.attack.looked_at` returns, and what else the parts have."""
    classes = 0
    with keeping_globals(batches.device):  # a loader draws from them
        for x, y, *others in parts:
            if len(x):
                x, y, classes = attack.looked_at(model, x, y, threat, classes)
            yield x, y, classes, *others


def perturb(
    model: nn.Module, data: Any, config: SPATConfig, count: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """See :class:`spatlib.engines.Engine`."""
    batches = Batches(data, count, model, placed(model, None), config.bounds)
    x, y, _ = next(_looked_through(model, batches, batches, config))
    x, y, source = x[:count], y[:count], torch.Generator(x.device).manual_seed(seed)
    found = attack.attacked(model, x, y, config, source=source, check=True)
    return map(as_array, (x, y, found.x, torch.ones_like(x) if found.mask is None else found.mask))


def precision(model: Any, device: str | None) -> str:
    """What ``"auto"`` is there: bfloat16 where it has units for it, for networks by name."""
    if not isinstance(model, str):
        return "float32"  # inputs and logits would be rounded (docs/performance.md)
    kind = placed(nn.Identity(), device).type
    known = torch.cpu.get_capabilities() if kind == "cpu" else {}
    fast = known.get("amx_bf16") or known.get("avx512_bf16")
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def logits(model: nn.Module, x: Any, batch_size: int = 256) -> np.ndarray:
    """Logits (N, K) in inference mode."""
    batches = Batches((x, torch.zeros(len(x))), batch_size, model, placed(model, None), (0, 1))
    with attack_state(model, fork=batches.device) as module, torch.no_grad():
        return torch.cat([ops.logits_of(module, z) for z, _ in batches]).numpy(force=True)


def vjp(model: nn.Module, x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The logits at x, and the map from a cotangent (N, K) to the gradient in x, once."""
    like = next(model.parameters(), torch.zeros(()))
    with attack_state(model) as module:
        z, pull = attack.vjp(module, torch.as_tensor(x).to(like))
    return z.double().numpy(force=True), lambda c: pull(torch.as_tensor(c).to(z)).numpy(force=True)
