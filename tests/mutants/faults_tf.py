"""Faults in the TensorFlow engine, by the tests that have to notice: see faults_core."""

from __future__ import annotations

from .faults_core import Faults
from .faults_torch import TRAJECTORIES

PGD, TRADES, L2 = (
    (f"{TRAJECTORIES}[tf-{case}]",)
    for case in ("pgd-Linf-min-True", "trades-Linf-off-True", "pgd-L2-mean-True")
)
MASKS = ("tests/test_trajectories.py::test_masks_equal_the_oracle", "-k", "tf")
FIT, GRAPH, MODEL, TRAIN, TWIN, CALLBACKS = (
    f"tests/test_tf_{name}.py::test_"
    for name in ("fit", "graph", "model", "train", "twin", "callbacks")
)
STATISTICS = (f"{FIT}statistics_move_as_in_the_outer_passes_alone",)
VARIABLES = (f"{FIT}attacks_leave_every_variable_as_it_was", "-k", "perturb and pgd")
SEED = (f"{TRAIN}a_generator_decides_the_draws_and_moves_on",)
NAN = (f"{FIT}a_step_with_a_loss_of_nan_changes_nothing[graph-momentum]",)
INFINITE = (f"{TRAIN}training_stops_at_the_last_good_step[1-gradient]",)
KERAS = (f"{MODEL}without_a_budget_loss_and_updates_are_those_of_keras",)
SETTINGS = (f"{TWIN}settings_of_the_training_attack_play_no_part",)

CLEAN = '    clean = None if config.base == "pgd" else logits_of(model, x, training=True)\n'
MOVED = "    logits = logits_of(model, x_adv, training=True)\n"
LOOP = ("tests/test_loops.py::test_training_is_the_loop_by_hand[tf-onecycle]",)

FAULTS: dict[tuple[str, tuple[str, ...]], Faults] = {
    ("spatlib_tf/norm.py", ("tests/test_tf_norm.py",)): {
        "mean forgotten": ("shift = -layer.moving_mean * factor", "shift = 0 * factor"),
        "statistics of the batch ignored": ("if training or not image", "if not image"),
        "channels first taken for last": (" and layer.axis in (-1, 3)", ""),
        "other precisions": (" and inputs.dtype == tf.float32", ""),
        "layers left as they were made": ('vars(layer).pop("call", None)', "pass"),
        "layers that replicas share": ("num_replicas_in_sync == 1", "num_replicas_in_sync > 0"),
    },
    ("spatlib_tf/state.py", ("tests/test_tf_norm.py",)): {
        "two passes": ("with in_one_pass(model):\n            yield False", "yield False"),
    },
    ("spatlib_tf/attack.py", PGD): {
        "gradient through the target": (
            """        constant = tf.stop_gradient(log_p)
        b = label if base_target is None else base_target
        q = target.smoothed_target(ops, b, label, constant, config.smoothing, config.guard)
        stall = target.stalled(ops, label, constant, config.smoothing)
        return target.objective(ops, log_p, tf.stop_gradient(q)), mean(stall)
""",
            """        b = label if base_target is None else base_target
        q = target.smoothed_target(ops, b, label, log_p, config.smoothing, config.guard)
        stall = target.stalled(ops, label, log_p, config.smoothing)
        return target.objective(ops, log_p, q), mean(stall)
""",
        ),
        "mask forgotten in the box": (
            "feasible_box(ops, x, mask, config.eps",
            "feasible_box(ops, x, None, config.eps",
        ),
        "gradient at the input": ("iterate = ops.clip(x + d,", "iterate = ops.clip(x + 0 * d,"),
        "one step less": ("(body, config.steps, (d", "(body, config.steps - 1, (d"),
        "start ignored": ("if start is None else start, x, val", "if True else start, x, val"),
    },
    ("spatlib_tf/attack.py", TRADES): {
        "label instead of the clean probabilities": (
            'config.base == "trades" and clean',
            "clean is None and clean",
        ),
    },
    ("spatlib_tf/attack.py", L2): {
        "gradient through the attack": ("tf.stop_gradient(x_adv), clean,", "x_adv, clean,"),
        "mask forgotten in the step": ("step(ops, d, grad, mask,", "step(ops, d, grad, None,"),
    },
    ("spatlib_tf/attack.py", ("tests/test_bounds.py", "-k", "tf")): {
        "result not clipped": ("return ops.clip(x + d, *config.bounds),", "return x + d,"),
    },
    ("spatlib_tf/attack.py", VARIABLES): {
        "attack in training mode": ("iterate, training=training)", "iterate, training=True)"),
    },
    ("spatlib_tf/attack.py", SEED): {
        "the same start every time": ("else next_seed(generator, x)", "else tf.zeros(2, tf.int32)"),
    },
    ("spatlib_tf/attack.py", ("tests/test_stall.py", "-k", "tf-0.3")): {
        "stalled steps added up": ("stall / config.steps", "stall"),
        "stall at the input": (
            "stall + tf.cast(stalled, stall.dtype)",
            "tf.cast(stalled, stall.dtype)",
        ),
    },
    ("spatlib_tf/attack.py", (f"{GRAPH}the_graph_does_not_grow_with_the_steps",)): {
        "loop unrolled": (
            "d, stall = ops.repeat(body, config.steps, (d, tf.zeros((), x.dtype)))",
            "stall = tf.zeros((), x.dtype)\n    for _ in range(config.steps):\n"
            "        d, stall = body(d, stall)",
        ),
    },
    ("spatlib_tf/mask.py", MASKS): {
        "last class forgotten": ("    if every:\n        state", "    if False:\n        state"),
        "last class twice": ("rounds, like = classes - 1,", "rounds, like = classes,"),
        "label's own class forgotten": ("[[0], draw_offsets", "[[1], draw_offsets"),
        "saliency pooled along a row": ("len(x.shape) - 1 if", "len(x.shape) - 2 if"),
        "the start's seed for the mask": (
            "logits.shape[1], split(seed, MASK)",
            "logits.shape[1], seed",
        ),
    },
    ("spatlib_tf/ops.py", ("tests/test_mask.py", "--backends=tf")): {
        "one pixel more kept": (
            "tf.math.top_k(flat, k)",
            "tf.math.top_k(flat, min(k + 1, flat.shape[1]))",
        ),
        "the largest for the k-th largest": (".values[:, -1]", ".values[:, 0]"),
    },
    ("spatlib_tf/ops.py", ("tests/test_ops.py", "tests/test_target.py", "--backends=tf")): {
        "ties doubled": (
            "tf.one_hot(tf.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)",
            "tf.cast(tf.reduce_max(x, axis=-1, keepdims=True) == x, x.dtype)",
        ),
        "one-hot in float32": ("x.shape[-1], dtype=x.dtype)", "x.shape[-1])"),
    },
    ("spatlib_tf/ops.py", ("tests/test_step.py", "--backends=tf")): {
        "sign of 0 is 1": ("tf.sign(x)", "tf.where(x < 0, -tf.ones_like(x), tf.ones_like(x))"),
    },
    ("spatlib_tf/losses.py", PGD): {
        "sum over the batch": ("tf.reduce_mean(losses)", "tf.reduce_sum(losses)"),
        "label smoothed in the outer loss": (
            "label = one_hot(y, logits)",
            "label = 0.9 * one_hot(y, logits) + 0.1 / logits.shape[1]",
        ),
    },
    ("spatlib_tf/losses.py", TRADES): {
        "no gradient through the clean logits": (
            "else logits_of(model, x, training=True)",
            "else tf.stop_gradient(logits_of(model, x, training=True))",
        ),
    },
    ("spatlib_tf/losses.py", STATISTICS): {
        "outer pass in inference mode": (
            "logits_of(model, x_adv, training=True)",
            "logits_of(model, x_adv)",
        ),
        "clean pass in inference mode": (
            "logits_of(model, x, training=True)",
            "logits_of(model, x)",
        ),
        "clean pass after the adversarial one": (CLEAN + MOVED, MOVED + CLEAN),
    },
    ("spatlib_tf/state.py", VARIABLES): {
        "statistics of the attack kept": ("variable.assign(value)", "pass"),
        "training mode always": ("yield False", "yield True"),
    },
    ("spatlib_tf/state.py", (f"{FIT}variables_come_back_after_an_exception_in_train_mode",)): {
        "restored only without an exception": (
            "    try:\n        yield True\n    finally:\n        for",
            "    yield True\n    if True:\n        for",
        ),
    },
    ("spatlib_tf/evaluation.py", SETTINGS): {
        "mask, smoothing and steps of the training": (
            "threat, named, graphs = evaluation.threat,",
            "threat, named, graphs = evaluation.config,",
        ),
    },
    ("spatlib_tf/random.py", SEED): {
        "the same seed every step": ("generator.next()", "generator.state.value"),
    },
    ("spatlib_tf/random.py", ("tests/test_draws.py", "-k", "tf or tensorflow")): {
        "probes without signs": ("return 2 * tf.cast(", "return 1 + tf.cast("),
        "the label compared with itself": ("return 1 + tf.math.top_k", "return tf.math.top_k"),
        "uniform numbers up to a half": ("2.0**-digits", "2.0 ** (-digits - 1)"),
        "normal numbers on one side": (
            "tf.cos(2 * math.pi * u[1])",
            "tf.abs(tf.cos(2 * math.pi * u[1]))",
        ),
    },
    ("spatlib_tf/model.py", NAN): {
        "update with NaN": ("tf.cond(finite, apply, lambda: finite)", "apply()"),
        "buffers not rolled back": (
            "variable.assign(tf.where(finite, variable.value, value))",
            "pass",
        ),
        "NaN not said": (
            'return tf.where(finite, loss, float("nan"))',
            "return tf.where(finite, loss, 0.0)",
        ),
    },
    ("spatlib_tf/model.py", INFINITE): {
        "infinite gradients not seen": (
            " & tf.math.is_finite(tf.linalg.global_norm(gradients))",
            "",
        ),
    },
    ("spatlib_tf/model.py", KERAS): {
        "sample weights forgotten": ("    if weight is not None:", "    if False:"),
        "penalties forgotten in training": (
            "_sum(self.losses, losses)\n            #",
            "0.0\n            #",
        ),
        "penalties forgotten in validation": ("_sum(self.losses, losses)  # pen", "0.0  # pen"),
    },
    (
        "spatlib_tf/model.py",
        (f"{MODEL}logs_report_training_and_validation_clean_and_under_attack",),
    ): {
        "validation under the training attack alone": (
            "self._record(loss, x, robust)",
            "self._record(loss, x, is_correct(logits, labels))",
        ),
    },
    ("spatlib_tf/model.py", (f"{FIT}validation_changes_no_training",)): {
        "validation draws from the training's source": (
            "self.evaluation_seeds = keras.random.SeedGenerator(seed)",
            "self.evaluation_seeds = self.seed_generator",
        ),
    },
    (
        "spatlib_tf/model.py",
        (f"{CALLBACKS}weights_alone_come_back_with_the_state_of_the_generator",),
    ): {
        "seed not saved": ('self.seed_generator.state.assign(store["seed"])', "pass"),
    },
    ("spatlib_tf/model.py", (f"{GRAPH}two_replicas_train_as_one_device[pgd]",)): {
        "replicas add up whole losses": (
            "share = loss / tf.distribute.get_strategy().num_replicas_in_sync",
            "share = loss",
        ),
    },
    ("spatlib_tf/model.py", ("tests/test_loops.py", "-k", "metrics")): {
        "metrics of the attacked inputs": (
            "clean = logits_of(self.base, x) if attack.clean is None else attack.clean",
            "clean = 0 * logits",
        ),
    },
    ("spatlib_tf/loop.py", LOOP): {
        "rate of the next step": (
            "lr_factor(self.training.schedule, self.step, self.total)",
            "lr_factor(self.training.schedule, self.step + 1, self.total)",
        ),
        "no warm-up": ("if attack != self.trainer.config", "if False"),
        "a graph of the first eps": (
            "self.trainer.make_train_function(force=True)",
            "pass",
        ),
        "the first epoch again and again": ('"epoch": epoch + 1', '"epoch": epoch'),
    },
    ("spatlib_tf/engine.py", ("tests/test_tf_step.py", "-k", "compiles")): {
        "compile ignored": ('training.compile or "auto"', '"auto"'),
    },
    ("spatlib_tf/engine.py", LOOP): {
        "without momentum": ("momentum=training.momentum", "momentum=0.0"),
        "without weight decay": ("weight_decay=training.weight_decay or None", "weight_decay=None"),
    },
}
