"""Which tests have to notice a fault in which file, the quicker ones first."""

from __future__ import annotations

TRAJECTORIES = "tests/test_trajectories.py::test_weights_after_twenty_steps_equal_the_oracle"
CASES = ("pgd-Linf-min-True", "trades-Linf-off-True", "pgd-L2-mean-False", "mart-L2-rms-True")
TORCH, TF = (
    tuple(f"{TRAJECTORIES}[{engine}-{case}]" for case in CASES) for engine in ("torch", "tf")
)
RECTIFIED = tuple(
    "tests/test_trajectories.py::test_weights_with_soft_and_rectified_labels_equal_the_oracle"
    f"[torch-0.75-{case}-three classes-True]"
    for case in ("pgd-Linf", "trades-Linf")
)
STALL = "tests/test_stall.py::test_share_of_stalled_steps_is_the_oracles"
NINE = "tests/test_verdicts.py::test_targets_are_the_nine_best_of_the_other_classes"
ALL_ONES = "tests/test_shared_mask.py::test_masks_that_keep_all_pixels_ask_no_network"
HALF = "tests/test_low_precision.py::test_no_entry_is_rounded_away_from_its_input[numpy]"
CORE = {
    "apgd": ("apgd",),
    "attack": (),
    "survivors": ("passes",),
    "feasible": ("start", "step", "projection_rounds", "projection_limits", "projection"),
    "mask": ("cotangents", "mask", "shared_mask"),
    "numpy_ops": ("ops", "cotangents", "losses", "target", "mask", "projection_limits", "step"),
    "ops": ("losses", "target", "mask", "step", "apgd"),
    "target": ("stall", "target", "cotangents", "apgd", "losses"),
}
ALSO = {
    "attack": (
        *TORCH,
        "tests/test_stall.py",
        "tests/test_attack.py",
        "tests/test_holes.py",
        "tests/test_bounds.py",
        "tests/test_trajectories.py::test_attack_stays_in_the_set_and_off_masked_pixels",
        "-k",
        "torch or stall",
    ),
    "survivors": (
        "tests/test_evaluation.py",
        "tests/test_verdicts.py",
        "tests/test_holes.py",
        "tests/test_points.py",
        "tests/test_apgd.py::test_engines_go_where_the_oracle_goes",
        "tests/test_outcomes.py::test_objects_that_hold_their_model_are_called_with_a_batch",
        "tests/test_forms.py::test_networks_of_a_fixed_batch_train_and_are_measured",
        "-k",
        "torch or evaluation or verdicts or points or holes or fixed_batch",
    ),
    "target": (
        f"{NINE}[torch-9-0]",
        f"{NINE}[torch-10-1]",
        "tests/test_errors.py::test_bad_batches_are_refused",
        "tests/test_errors.py::test_a_loop_of_many_steps_asks_for_no_label_and_sees_wrong_ones_in_their_losses",
        "tests/test_soft_labels.py::test_rounded_rows_are_labels[torch]",
        "tests/test_soft_labels.py::test_mart_refuses_soft_labels[torch]",
        "tests/test_soft_labels.py::test_one_hot_rows_are_hard_labels_to_the_bit[mart-torch]",
        "tests/test_soft_labels.py::test_soft_labels_are_b_and_their_largest_entry_is_the_label",
    ),
    "numpy_ops": (HALF,),
    "feasible": (
        "tests/test_torch_contexts.py::test_gaussian_starts_have_their_scale_whatever_eps_is",
        "tests/test_projection.py::test_feasible_box_holds_0_and_equals_the_oracle",
        HALF,
        "tests/test_low_precision.py::test_what_half_precision_holds_is_reached[numpy]",
    ),
}
SOFT = tuple(
    f"tests/test_soft_labels.py::test_{name}"
    for name in (
        "weights_multiply_the_losses_and_the_mean_is_over_all_examples[pgd-torch]",
        "bad_weights_are_refused_before_the_attack[negative-torch]",
        "bad_weights_are_refused_before_the_attack[short-torch]",
        "mart_refuses_soft_labels[torch]",
    )
)
STATE = (  # the quicker ones first
    "tests/test_errors.py",
    "tests/test_draws.py",
    "tests/test_torch_contexts.py",
    "tests/test_torch_state.py",
)
DRAWS = tuple(
    f"tests/test_draws.py::test_{name}"
    for name in (
        "tensorflows_linf_and_gaussian_starts_have_their_distributions",
        "tensorflows_starts_fill_the_ball",
        "noise_of_a_random_mask_fills_the_interval[tf]",
        "offsets_are_other_classes_without_replacement_and_all_orders_occur[tf]",
        "probes_are_signs_of_both_kinds_at_every_place[tf]",
        "tensorflows_own_generator_gives_the_starts_unless_one_is_given",
        "keras_generator_stays_where_a_graph_finds_no_more_data",
    )
)
FIT, GRAPH = (f"tests/test_tf_{name}.py::test_" for name in ("fit", "graph"))
ERRORS = tuple(
    f"tests/test_tf_errors.py::test_{name}"
    for name in (
        "bad_batches_are_refused",
        "bad_start_or_mask_is_refused",
        "errors_keep_their_class_in_a_graph",
    )
)
SELECTION: dict[str, tuple[str, ...]] = {
    **{
        f"spatlib/core/{name}.py": (
            *(f"tests/test_{t}.py" for t in tests),
            *(() if name == "attack" else ("--backends=numpy",)),
            *ALSO.get(name, ()),
        )
        for name, tests in CORE.items()
    },
    "spatlib/core/calls.py": (
        *TORCH,
        *RECTIFIED,
        f"{STALL}[torch-0.3]",
        f"{ALL_ONES}[torch]",
        "tests/test_holes.py::test_holes_are_warned_of_with_their_share[torch-shared_mask]",
        *SOFT,
        "tests/test_rectify.py",
        *STATE,
    ),
    "spatlib_torch/attack.py": (
        *TORCH,
        f"{STALL}[torch-0.3]",
        f"{STALL}[torch-0.0]",
        "tests/test_rectify.py",
        *STATE,
        "tests/test_torch_plain.py",
        "tests/test_augment.py::test_the_rows_of_a_process_move_as_in_the_batch_of_all[crop]",
        "tests/test_looks.py::test_test_data_are_checked_before_the_training[torch]",
        "tests/test_torch_graphs.py::test_logits_of_weights_alone_are_refused_under_autocast",
        "tests/test_torch_graphs.py::test_what_surrounds_the_network_is_three_graphs_for_all_steps",
        "tests/test_torch_graphs.py::test_each_network_is_compiled_for_itself",
    ),
    "spatlib_tf/attack.py": (
        *DRAWS,
        *TF,
        f"{STALL}[tf-0.3]",
        f"{FIT}attacks_leave_every_variable_as_it_was",
        f"{FIT}statistics_move_as_in_the_outer_passes_alone",
        f"{GRAPH}the_graph_does_not_grow_with_the_steps",
        f"{GRAPH}the_graph_does_not_grow_with_the_classes",
        *ERRORS,
        "tests/test_rectify.py",
        "tests/test_tf_strategies.py::test_two_replicas_train_as_one_device",
    ),
}
