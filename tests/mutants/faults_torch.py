"""Faults in the PyTorch engine, by the tests that have to notice: see faults_core."""

from __future__ import annotations

from .faults_core import Faults

TRAJECTORIES = "tests/test_trajectories.py::test_weights_after_twenty_steps_equal_the_oracle"
PGD, TRADES, L2 = (
    (f"{TRAJECTORIES}[torch-{case}]",)
    for case in ("pgd-Linf-min-True", "trades-Linf-off-True", "pgd-L2-mean-True")
)
MASKS = ("tests/test_trajectories.py::test_masks_equal_the_oracle", "-k", "torch")
PLAIN, STATE, CONTEXTS, EVALUATION, TRAINING = (
    (f"tests/test_{name}.py",)
    for name in ("torch_plain", "torch_state", "torch_contexts", "evaluation", "training")
)

RESUMED = (
    "tests/test_resume.py::test_a_resumed_run_equals_the_one_that_was_never_stopped[torch-3]",
)
LOOP = ("tests/test_loops.py::test_training_is_the_loop_by_hand[torch-onecycle]",)
CLEAN = '    clean = None if config.base == "pgd" else logits_of(model, x)\n'
MOVED = "    logits = logits_of(model, attacked.x)\n"
THAW = "            for p in trainable:\n                p.requires_grad_(True)"

FAULTS: dict[tuple[str, tuple[str, ...]], Faults] = {
    ("spatlib_torch/norm.py", ("tests/test_torch_norm.py",)): {
        "mean forgotten": ("shift = -mean * scale if", "shift = 0 * scale if"),
        "statistics of the batch ignored": (" or layer.training or", " or"),
        "layers left as they were made": ('del vars(layer)["forward"]', "pass"),
        "compiled networks too": ("if found and is_compiled(model):", "if False:"),
    },
    ("spatlib_torch/attack.py", PGD): {
        "gradient through the target": ("b, label, log_p.detach(),", "b, label, log_p,"),
        "guard at the first iterate": (
            "target.smoothed_target(ops, b, label, log_p.detach(), smoothing, self.config.guard)",
            'self.__dict__.setdefault("q", target.smoothed_target('
            "ops, b, label, log_p.detach(), smoothing, self.config.guard))",
        ),
        "mask forgotten in the box": (
            "feasible_box(ops, x, mask, config.eps",
            "feasible_box(ops, x, None, config.eps",
        ),
        "gradient at the input": ("iterate = (x + d)", "iterate = (x + 0 * d)"),
        "one step less": ("range(config.steps)", "range(config.steps - 1)"),
        "start ignored": ("        if start is None:\n", "        if True:\n"),
    },
    ("spatlib_torch/attack.py", TRADES): {
        "label instead of the clean probabilities": (
            "softmax(dim=1) if trades else",
            "softmax(dim=1) if False else",
        ),
    },
    ("spatlib_torch/attack.py", L2): {
        "mask forgotten in the step": ("step(ops, d, grad, mask,", "step(ops, d, grad, None,"),
    },
    ("spatlib_torch/attack.py", ("tests/test_bounds.py", "-k", "torch")): {
        "result not clipped": ("return (x + d).clamp_(*config.bounds)", "return x + d"),
    },
    ("spatlib_torch/attack.py", CONTEXTS): {
        "starts from the global generator": ("generator=generator, dtype", "generator=None, dtype"),
        "one radius for the whole batch": ("(len(x), *(1,)", "(1, *(1,)"),
        "uniform numbers for the L2 start": (
            'torch.randn if config.norm == "L2" else torch.rand, x',
            "torch.rand, x",
        ),
        "gaussian start of deviation 1": ("GAUSSIAN_START * draw", "draw"),
        "no start where one is due": (
            'if config.random_start == "none"',
            'if config.random_start != "none"',
        ),
        "generator stays where it is": ("if random_mask and not stays:", "if False:"),
    },
    ("spatlib_torch/attack.py", STATE): {
        "global generator moved on": ("keep_rng=own_source", "keep_rng=False"),
    },
    ("spatlib_torch/attack.py", ("tests/test_stall.py", "-k", "torch-0.3")): {
        "stall rate of the last step": ("torch.stack(self.stalls).mean()", "self.stalls[-1]"),
    },
    ("spatlib_torch/mask.py", MASKS): {
        "last class forgotten": ("yield -total", "yield 0 * total"),
        "label's own class forgotten": (
            "(0, *draw_offsets(config, classes, draws))",
            "draw_offsets(config, classes, draws)",
        ),
        "classes counted from 0, not from the label": (
            "label.roll(offset, dims=1)",
            "torch.roll(label * 0 + label[:1], offset, dims=1)",
        ),
        "saliency pooled along a row": ("channel_axis = 1 if", "channel_axis = 2 if"),
    },
    ("spatlib_torch/mask.py", ("tests/test_draws.py", "-k", "torch")): {
        "probes without signs": (
            "2.0 * torch.randint(2, (config.probes, *shape), generator=draws) - 1.0",
            "1.0 * torch.randint(2, (config.probes, *shape), generator=draws)",
        ),
        "the label compared with itself": ("1 + int(offset)", "int(offset)"),
        "the same classes every time": (
            "order = torch.randperm(classes - 1, generator=draws)",
            "order = torch.arange(classes - 1)",
        ),
    },
    ("spatlib_torch/ops.py", ("tests/test_mask.py", "--backends=torch")): {
        "one pixel more kept": (
            "torch.topk(x.flatten(1), k, dim",
            "torch.topk(x.flatten(1), min(k + 1, x[0].numel()), dim",
        ),
        "the largest for the k-th largest": (".values.amin(dim=1)", ".values.amax(dim=1)"),
    },
    ("spatlib_torch/ops.py", ("tests/test_ops.py", "tests/test_target.py", "--backends=torch")): {
        "ties doubled": (
            "(x.argmax(dim=-1, keepdim=True) == classes).to(x.dtype)",
            "(x.amax(dim=-1, keepdim=True) == x).to(x.dtype)",
        ),
        "one-hot in float32": ("== classes).to(x.dtype)", "== classes).float()"),
        "log-softmax overflows": (
            "functional.log_softmax(x, dim=-1)",
            "torch.log(torch.exp(x) / torch.exp(x).sum(dim=-1, keepdim=True))",
        ),
    },
    ("spatlib_torch/ops.py", ("tests/test_step.py", "--backends=torch")): {
        "sign of 0 is 1": ("torch.sign(x)", "torch.where(x < 0, -1.0, 1.0).to(x.dtype)"),
    },
    ("spatlib_torch/losses.py", PGD): {
        "sum over the batch": ("losses.mean()", "losses.sum()"),
        "label smoothed in the outer loss": (
            "one_hot(y, logits), clean",
            "0.9 * one_hot(y, logits) + 0.1 / logits.shape[1], clean",
        ),
        "start not passed on": (
            "config, start, mask, generator, validate)\n    clean",
            "config, None, mask, generator, validate)\n    clean",
        ),
    },
    ("spatlib_torch/losses.py", TRADES): {
        "no gradient through the clean logits": (
            "else logits_of(model, x)",
            "else logits_of(model, x).detach()",
        ),
    },
    ("spatlib_torch/losses.py", STATE): {
        "clean pass after the adversarial one": (CLEAN + MOVED, MOVED + CLEAN),
        "a clean pass that PGD does not need": (
            'None if config.base == "pgd" else logits_of(model, x)',
            "logits_of(model, x)",
        ),
    },
    ("spatlib_torch/state.py", STATE): {
        "BatchNorm in training mode in the attack": ('flag and mode == "train"', "flag"),
        "inference mode always": ('flag and mode == "train"', "False"),
        "every module left in training mode": (
            f"module.training = flag\n{THAW}",
            f"module.training = True\n{THAW}",
        ),
        "requires_grad not restored": ("p.requires_grad_(True)", "p.requires_grad_(False)"),
        "frozen parameters come back trainable": (
            THAW,
            THAW.replace("trainable", "model.parameters()"),
        ),
        "buffers not restored": ("buffer.copy_(value)", "buffer.copy_(buffer)"),
        "the same mask every time": ("int.from_bytes(digest)", "0"),
        "restored only without an exception": (
            "yield\n        finally:\n",
            "yield\n        except ZeroDivisionError:\n            raise\n        else:\n",
        ),
    },
    ("spatlib_torch/state.py", CONTEXTS): {
        "inference mode stays on": (
            "        stack.enter_context(torch.inference_mode(False))\n",
            "",
        ),
        "attack through the distributed wrapper": (
            "return model.module if isinstance(model, wrappers) else model",
            "return model",
        ),
        "mask draws from the starts' own generator": (
            "return torch.Generator().manual_seed(int.from_bytes(digest))",
            "return generator or torch.default_generator",
        ),
    },
    ("spatlib/evaluate.py", EVALUATION): {
        "mask, smoothing and steps of the training": (
            "config, config.evaluation(steps)",
            "config, config",
        ),
        "clean verdict and earlier restarts forgotten": (
            "= verdicts[key] & started",
            "= started",
        ),
        "one good restart is enough": ("= verdicts[key] & started", "= verdicts[key] | started"),
        "verdict at the start forgotten": ("= verdicts[key] & started", "= verdicts[key]"),
        "verdict at the end forgotten": ("robust & right", "robust"),
        "the same start in every restart": ("seed + 7919 * r", "seed"),
    },
    ("spatlib/evaluate.py", ("tests/test_verdicts.py", "-k", "torch")): {
        "the same attack for every name": (
            "attack_loss(ops, name, z, label, goal)",
            'attack_loss(ops, "pgd", z, label, goal)',
        ),
        "the last target decides": ("robust & right", "right"),
        "the same target again and again": ("rivals(ops, rest, goal), ", "rest, "),
        "the label as a target": ("rivals(ops, clean, label)", "clean"),
        "right where the logits are not numbers": (" & (total == total)", ""),
    },
    ("spatlib_torch/evaluation.py", EVALUATION): {
        "attack in training mode": (
            'attack_state(unwrap(model), "eval", where',
            'attack_state(unwrap(model), "train", where',
        ),
    },
    ("spatlib_torch/loop.py", TRAINING): {
        "update with NaN": ("found_inf = stopped.float()", "found_inf = 0 * stopped.float()"),
        "buffers not rolled back": ("buffer.copy_(torch.where(stopped, before, buffer))", "pass"),
        "training goes on after a bad step": (
            "torch.where(self.first_bad > 0, self.first_bad, bad)",
            "bad",
        ),
        "infinite gradients not seen": ("outcome.loss.detach() + norm", "outcome.loss.detach()"),
        "the same order for every seed": (
            "self.order = torch.Generator().manual_seed(training.seed)",
            "self.order = torch.Generator().manual_seed(0)",
        ),
    },
    ("spatlib_torch/engine.py", TRAINING): {
        "dropout not seeded": ("        _seed_dropout(training.seed, device)\n", ""),
        "modes not restored": ("module.training = flag", "pass"),
    },
    ("spatlib_torch/loop.py", LOOP): {
        "rate of the next step": ("= self._lr(self.step)", "= self._lr(self.step + 1)"),
        "no warm-up": (
            "warmed_up(self.config, self.training.eps_warmup, ",
            "(lambda c, *_: c)(self.config, ",
        ),
        "without momentum": ("momentum=training.momentum", "momentum=0.0"),
        "without weight decay": ("weight_decay=training.weight_decay", "weight_decay=0.0"),
        "gradients add up": ("        self.optimizer.zero_grad(set_to_none=True)\n", ""),
        "a small batch weighs as much as a large one": (") * len(y)\n", ")\n"),
    },
    ("spatlib/monitor.py", ("tests/test_run.py", "-k", "patience or catastrophic")): {
        "patience from the first epoch": ("max(best, self.training.eps_warmup)", "best"),
        "warned of while eps grows": (
            "if len(history) > self.training.eps_warmup:",
            "if len(history):",
        ),
        "not warned of at the first full eps": (
            "if len(history) > self.training.eps_warmup:",
            "if len(history) > self.training.eps_warmup + 1:",
        ),
    },
    ("spatlib/schedule.py", ("tests/test_training.py", "-k", "rise")): {
        "the last step left out": ("(epoch + 1) / (warmup + 1)", "(epoch + 1) / warmup"),
        "steps as long as ever": (
            "step_size=part * config.step_size",
            "step_size=config.step_size",
        ),
    },
    ("spatlib_torch/loop.py", RESUMED): {
        "starts not taken up": ('        self.starts.set_state(states["starts"])\n', ""),
        "crops not taken up": ('        self.crops.set_state(states["crops"])\n', ""),
        "dropout not taken up": ('        torch.set_rng_state(states["global"])\n', ""),
        "momentum not taken up": ("torch.empty_like(p).copy_(buffer)", "torch.zeros_like(p)"),
        "average not taken up": ('put(self.average, parts["average"], CHECKPOINT)', "pass"),
        "the epoch begun again": ("for _ in range(self.done):", "for _ in []:"),
    },
    ("spatlib_torch/loop.py", ("tests/test_safety.py", "-k", "torch and (average or clipped)")): {
        "the average stands still": ("            move(*pairs, 0)\n", ""),
        "gradients not clipped": (
            "nn.utils.clip_grads_with_norm_(self.parameters, self.training.clip_grad_norm, norm)",
            "pass",
        ),
    },
}
