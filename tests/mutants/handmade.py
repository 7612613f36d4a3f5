"""Mutants made by hand: one or two for each kind of fault that somebody could write.

A fault is what it is in words, the text that it replaces, and by what.
"""

from __future__ import annotations

from collections.abc import Iterator

from .mutant import ROOT, Mutant
from .selection import FIT, SELECTION, TF, TORCH

Faults = dict[str, tuple[str, str]]

STATE = ("tests/test_torch_state.py",)
CONTEXTS = (*STATE, "tests/test_torch_contexts.py", "tests/test_draws.py")
TF_VERDICTS = ("tests/test_points.py", "-k", "tensorflow")
TF_DRAWS = ("tests/test_draws.py",)
TF_STATE = (f"{FIT}attacks_leave_every_variable_as_it_was",)

RECTIFY = ("tests/test_rectify.py",)
RECTIFIED = (
    "tests/test_trajectories.py::test_weights_with_soft_and_rectified_labels_equal_the_oracle",
    "-k",
    "torch",
)
LOOPS = ("tests/test_loops.py", "-k", "tf")

TF_MASKED = (
    "tests/test_trajectories.py::test_attack_stays_in_the_set_and_off_masked_pixels",
    "-k",
    "tf",
)

CORE: dict[str, Faults] = {
    "apgd": {
        "period longer than the paper's": ("(0, 22, 41, 57, 70,", "(0, 22, 42, 57, 70,"),
        "moved point not projected": (
            "allowed.project(s.d + share * (z - s.d) + (1 - share) * (s.d - s.before))",
            "s.d + share * (z - s.d) + (1 - share) * (s.d - s.before)",
        ),
        "condition 2 never": ("(rises < 0) | stuck", "rises < 0"),
        "no return to the best": ("((s.best, s.d),", "((s.d, s.d),"),
        "points on the way not looked at": ("s.stands & right, s.sound", "right, s.sound"),
    },
    "attack": {
        "one step less": ("repeat(ascend, config.steps,", "repeat(ascend, config.steps - 1,"),
        "mask forgotten in the set": (
            "FeasibleSet(ops, x, config, mask)",
            "FeasibleSet(ops, x, config, None)",
        ),
        "label instead of the clean probabilities": (
            "ops.log_softmax(clean) if trades else None",
            "None",
        ),
        "gradient at the input": ("logits, pull = vjp(at(allowed, d))", "logits, pull = vjp(x)"),
        "start ignored": ("draws) if start is None else start", "draws)"),
        "result not clipped": ("Adversarial(allowed.at(d),", "Adversarial(x + d,"),
    },
    "survivors": {
        "start not looked at": ("verdicts[key].see(every, *seen)", "pass"),
        "wrong clean examples count": ("self.right[rows] &= right", "self.right[rows] = right"),
        "one target for all": (
            "goal in goals if part in TARGETED",
            "goal in goals[:1] if part in TARGETED",
        ),
        "what is decided is attacked on": (
            "np.flatnonzero(verdict.right) if separable else every",
            "every",
        ),
        "batches that are one whole are taken apart": (
            "if separable and len(left)",
            "if len(left)",
        ),
        "another's state goes on": (
            "Ascent(*(ops.take(v, left) for v in state))",
            "Ascent(*(v[: len(left)] for v in state))",
        ),
    },
    "feasible": {
        "bounds forgotten": (
            "self.lower = ops.maximum(threat.bounds[0] - x, -budget)",
            "self.lower = -budget + 0 * x",
        ),
        "start kept where the mask is 0": ("ops.where(self.mask > 0, start, 0.0)", "start"),
        "gradient not masked": ("grad if self.mask is None else self.mask * grad", "grad"),
        "L1 step on every entry": (
            "ops.where(size >= ops.kth_largest(size, count),",
            "ops.where(size >= 0,",
        ),
        "radius without the root": ("radius ** (1 / example_size(noise))", "radius"),
        "box forgotten in L2": ("return ops.clip(s * d, lower, upper)", "return s * d"),
        "threshold of L1 from its feasible end": (
            "shrunk = ops.minimum(ops.maximum(size - low, 0.0), side)",
            "shrunk = ops.minimum(ops.maximum(size - high, 0.0), side)",
        ),
    },
    "mask": {
        "gradients not centred": (
            "return rows - ops.sum(rows, axis=1, keepdims=True) / int(rows.shape[1])",
            "return rows",
        ),
        "classes not normalised": ("s = s / divisor(ops, total)", "s = s / 1"),
        "probes on scales of their own": (
            "before * old * old + _pixels",
            "before + _pixels",
        ),
        "pixels that no class depends on kept": (
            "((score >= threshold) & used) | none",
            "(score >= threshold) | none",
        ),
        "last class left out": ("passes = classes - 1 if every", "passes = classes - 2 if every"),
    },
    "target": {
        "divergence the other way round": (
            "ops.exp(log_clean) * (log_clean - log_adversarial)",
            "ops.exp(log_adversarial) * (log_adversarial - log_clean)",
        ),
        "MART without the weight 1 - p_y": ("divergence * (1 - ops.exp(clean_y))", "divergence"),
        "guard off": ("a = ops.where(excess > 0, ops.minimum(half, a), 0.0)", "a = a"),
        "guard at the whole way": ("GUARD = 0.5", "GUARD = 1.0"),
        "soft label taken for a hard one": (
            "ops.where(label > 0, ops.log(divisor(ops, label)), -math.inf)",
            "ops.where(ops.argmax_one_hot(label) > 0, 0 * log_p, -math.inf)",
        ),
        "guard by all of a soft label": ("y = ops.argmax_one_hot(label)", "y = label"),
        "label's entry forgotten": (
            "slope = slope - top * ops.sum(slope, axis=1, keepdims=True)",
            "slope = slope - 0 * top",
        ),
        "computed outside the log domain": (
            "slope = ops.exp(p - m) - ops.exp(b - m)",
            "slope = ops.exp(p) - ops.exp(b)",
        ),
        "gradient of a confident network not scaled": (
            "return cotangent / divisor(ops, ops.max(ops.abs(cotangent), axis=1, keepdims=True))",
            "return 1.0 * cotangent",
        ),
        "label forgotten by the average": (
            "(1 - r) * label + r * ops.exp",
            "0 * label + r * ops.exp",
        ),
        "NaN kept": ("ops.where(size < math.inf, grad, endless)", "1.0 * grad"),
        "ratio for a constant": ("to_unit(ops, up - ratio * down)", "to_unit(ops, 1.0 * up)"),
    },
}

ENGINES: dict[tuple[str, tuple[str, ...]], Faults] = {
    ("spatlib/core/calls.py", TORCH): {
        "clean pass after the perturbed one": (
            "label, clean, logits), logits",
            "label, logits, logits), logits",
        ),
        "start ignored": ("config, own, draws,", "config, (None, own[1]), draws,"),
    },
    ("spatlib/core/calls.py", TF_MASKED): {
        "mask of its own kept": ("config, own, draws,", "config, (own[0], None), draws,"),
    },
    ("spatlib/core/calls.py", TF): {
        "clean logits doubled": (
            "else self.forward(model, x)",
            "else 2 * self.forward(model, x)",
        ),
    },
    ("spatlib/core/calls.py", RECTIFIED): {
        "TRADES' label read at x'": (
            'average(x if config.loss == "trades" else x_adv)',
            "average(x_adv)",
        ),
    },
    ("spatlib_torch/attack.py", RECTIFY): {
        "average as it is trained": ("attack_state(network)", 'attack_state(network, "train")'),
    },
    ("spatlib_tf/attack.py", RECTIFY): {
        "gradient into the average": (
            "tf.stop_gradient(ops.logits_of(read, x))",
            "ops.logits_of(read, x)",
        ),
    },
    ("spatlib_tf/attack.py", LOOPS): {
        "average begins at 0": ("[tf.where(first, *pair) for pair", "[pair[1] for pair"),
    },
    ("spatlib_torch/state.py", STATE): {
        "parameters stay frozen": (
            'undo.callback(setattr, p, "requires_grad", p.requires_grad)',
            "pass",
        ),
        "buffers not put back": ("buffer.data.copy_(value)", "pass"),
        "training flags not put back": (
            'undo.callback(setattr, module, "training", module.training)',
            "pass",
        ),
    },
    ("spatlib_torch/state.py", ("tests/test_determinism.py", "-k", "in_force")): {
        "any algorithms": ('torch.set_deterministic_debug_mode("error")', "pass"),
        "cuBLAS' setting stays": ("undo.callback(os.environ.pop, CUBLAS, None)", "pass"),
    },
    ("spatlib/storage.py", ("tests/test_run_writing.py", "-k", "once")): {
        "the best weights written again": ("os.link(content, path)", "pass"),
    },
    ("spatlib_torch/attack.py", CONTEXTS): {
        "global generators move": (
            "fork = None if ours or (source is None and start is None) else x.device",
            "fork = None",
        ),
    },
    ("spatlib_torch/graphs.py", ("tests/test_torch_graphs.py",)): {
        "one limit for all networks": ("own.__code__ = ", "_ = "),
        "smaller batches compiled": ("if shapes == known and", "if"),
        "inputs of the capture": ("kept.copy_(new)", "pass"),
        "a graph for good": ("if key != self.key:", "if self.key is None:"),
        "draws of the trial go on": (
            "self.source.manual_seed(seed)\n        return self.replay()",
            "return self.replay()",
        ),
    },
    ("spatlib_torch/loop.py", ("tests/test_torch_graphs.py",)): {
        "the arithmetic as it is": ("compile=self.attack.on)", "compile=False)"),
    },
    ("spatlib_torch/attack.py", ("tests/test_torch_graphs.py",)): {
        "compiled anew for each budget": ("partial(compiled, dynamic=None)", "compiled"),
    },
    ("spatlib_tf/attack.py", TF_DRAWS): {
        "same offsets from every seed": (
            "self._integers([classes - 1],",
            "self._replace(seed=0 * self.seed)._integers([classes - 1],",
        ),
    },
    ("spatlib_tf/attack.py", TF_STATE): {
        "variables not put back": ("            variable.assign(value)", "            pass"),
    },
    ("spatlib_tf/engine.py", TF_VERDICTS): {
        "only the first start": (
            "tf.cast(start, x.dtype) for start in starts)",
            "tf.cast(start, x.dtype) for start in islice(starts, 1))",
        ),
    },
}


def mutants() -> Iterator[Mutant]:
    """All of them.

    Raises:
        ValueError: A text to replace is not in its file, or more than once.
    """
    core = {
        (f"spatlib/core/{name}.py", SELECTION[f"spatlib/core/{name}.py"]): faults
        for name, faults in CORE.items()
    }
    for (file, tests), faults in (core | ENGINES).items():
        source = (ROOT / file).read_text(encoding="utf-8")
        for what, (old, new) in faults.items():
            if source.count(old) != 1:
                raise ValueError(f"{file} has {source.count(old)} times {old!r} ({what})")
            yield Mutant(file, source.replace(old, new), tests, what=what)
