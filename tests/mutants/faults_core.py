"""Faults in the core: what each of them is in words, the text that it replaces, and by what."""

from __future__ import annotations

Faults = dict[str, tuple[str, str]]

APGD: Faults = {
    "period longer than the paper's": ("(0, 22, 41, 57, 70,", "(0, 22, 42, 57, 70,"),
    "first step of the size eps": ("zero + 2 * eps", "zero + eps"),
    "momentum the other way round": (
        "alpha * (z - at) + (1 - alpha) * (at - before)",
        "(1 - alpha) * (z - at) + alpha * (at - before)",
    ),
    "momentum in the first step": ("+ (1 - MOMENTUM) * ops.cast(number == 0, like=d)", ""),
    "moved point not projected": (
        "onto(at + alpha * (z - at) + (1 - alpha) * (at - before))",
        "(at + alpha * (z - at) + (1 - alpha) * (at - before))",
    ),
    "rises against the best": ("ops.cast(now[1] > value, like", "ops.cast(now[1] > best[1], like"),
    "rises never begin anew": ("ops.where(check, 0.0, rises)", "rises"),
    "condition 1 never": ("(rises < RISING * period) | stuck", "stuck"),
    "condition 2 never": ("(rises < RISING * period) | stuck", "rises < RISING * period"),
    "condition 2 after a halving": ("check & (halved == 0) & (", "check & ("),
    "best of the last checkpoint kept": (
        "pick(check, (ops.cast(halve, like=value), best[1]), (halved, mark))",
        "pick(check, (ops.cast(halve, like=value), mark), (halved, mark))",
    ),
    "no return to the best": ("pick(halve, best, now), best", "now, best"),
    "points on the way not looked at": ("stands & right)", "right)"),
    "the worst for the best": ("best = pick(now[1] > best[1]", "best = pick(now[1] < best[1]"),
}

LOSSES: Faults = {
    "cross-entropy with the wrong sign": ("cross_entropy = -ops.sum(", "cross_entropy = ops.sum("),
    "divergence the other way round": (
        "ops.exp(log_clean) * (log_clean - log_adversarial)",
        "ops.exp(log_adversarial) * (log_adversarial - log_clean)",
    ),
    "TRADES without beta": ("return beta * divergence", "return divergence"),
    "TRADES with the label at x'": ("divergence - clean_y", "divergence + cross_entropy"),
    "MART without the weight 1 - p_y": ("divergence * (1 - ops.exp(clean_y))", "divergence"),
    "MART with the label among the rivals": (
        "rivals(ops, adversarial, one_hot)",
        "adversarial",
    ),
    "MART's rival with the wrong sign": ("cross_entropy - others", "cross_entropy + others"),
}

MASK: Faults = {
    "class gradients not centred": (
        "return one_hot - 1 / int(one_hot.shape[1])",
        "return one_hot",
    ),
    "probe gradients not centred": (
        "return signs - ops.sum(signs, axis=1, keepdims=True) / int(signs.shape[1])",
        "return signs",
    ),
    "running minimum begins at 0": (
        'pixels + math.inf if share in ("min", "neutral") else pixels',
        "pixels",
    ),
    "classes not normalised": ("s / divisor(ops, total)", "1.0 * s"),
    "dead classes take part": ("ops.where(alive, s, math.inf)", "s"),
    "saliency with its sign": ("s = _pixels(ops, ops.abs(grad), ", "s = _pixels(ops, grad, "),
    "channels cancel": (
        "return x if channel_axis is None else ops.sum(",
        "return x if channel_axis is None else ops.max(",
    ),
    "running squares rescaled once": ("score * old * old", "score * old"),
    "neutral as min": ('s = -s if share == "neutral" else s', "s = +s"),
    "kept share rounded down": ("* example_size(score) + 0.5)", "* example_size(score))"),
    "one pixel more is kept": ("kept = max(1, math", "kept = max(1, 1 + math"),
    "ties dropped": ("score >= threshold", "score > threshold"),
    "the least shared pixels kept": ("score >= threshold", "score <= threshold"),
    "floor forgotten": ("0 * scale + floor)", "0 * scale)"),
}

PROJECTION: Faults = {
    "eps not scaled by the mask": ("eps if mask is None else eps * ops.minimum(mask, 1.0)", "eps"),
    "budgets above 1": ("ops.minimum(mask, 1.0)", "mask"),
    "budget forgotten": (
        "ops.maximum(bounds[0] - x, -budget), ops.minimum(bounds[1] - x, budget)",
        "bounds[0] - x + 0 * budget, bounds[1] - x + 0 * budget",
    ),
    "box without the bounds": (
        "ops.maximum(bounds[0] - x, -budget), ops.minimum(bounds[1] - x, budget)",
        "0 * x - budget, 0 * x + budget",
    ),
    "box forgotten in Linf": ("return ops.clip(d, lower, upper)", "return ops.clip(d, -eps, eps)"),
    "the upper wall on both sides in L1": (
        "side = ops.maximum(sign * lower, sign * upper)",
        "side = upper",
    ),
    "the upper wall on both sides in L2": (
        "wall = ops.clip(2 * eps * ops.sign(d), lower, upper) / eps",
        "wall = upper / eps",
    ),
    "sign lost": ("return sign * shrunk", "return shrunk"),
    "L1 ball for L2": ('if norm == "L2" else', 'if norm == "L1" else'),
    "walls forgotten in L2": ("total(ops.minimum(q * ray, wall))", "total(q * ray)"),
    "no search, where chords do not end it": (
        "ops.repeat(newton, NEWTON_ROUNDS",
        "ops.repeat(newton, 0",
    ),
    "chords alone": (
        "low, high = ops.where(met, q, low), ops.where(met, q, high)",
        "low, high = q, q",
    ),
    "no rounds that skip chains of walls": (
        "ops.where(stuck, ops.sqrt(landed) * ops.sqrt(high), landed)",
        "landed",
    ),
    "ends while it still moves": (
        "lambda low, high, _: high <= low",
        "lambda low, high, _: high >= low",
    ),
    "too tolerant": ("2.0 ** (3 - ops", "2.0 ** (10 - ops"),
    "walls of the clipped counted as free": ("total((1 - clipped) * ray)", "total(ray)"),
    "scaled although inside": ("inside = f_high == 0", "inside = f_high < 0"),
    "bisection takes the wrong half": (
        "ops.where(outside, t, low), ops.where(outside, high, t)",
        "ops.where(outside, low, t), ops.where(outside, t, high)",
    ),
    "soft threshold without the walls": (
        "shrunk = ops.minimum(ops.maximum(size - low, 0.0), side)",
        "shrunk = ops.maximum(size - low, 0.0)",
    ),
    "norm of the whole batch": (
        "axes = example_axes(d)\n\n    def total",
        "axes = tuple(range(len(d.shape)))\n\n    def total",
    ),
}

START: Faults = {
    "Linf starts on one side": ("eps * (2 * draws - 1)", "eps * draws"),
    "L2 radius without its exponent": ("radius ** (1 / example_size(draws))", "radius"),
    "L2 direction not normalised": ('* direction(ops, draws, "L2")', "* draws"),
    "L1 starts on the sphere": (" + _exponential(ops, radius)", ""),
    "L1 starts without signs": ("eps * ops.sign(signed) * (sizes", "eps * (sizes"),
}

STEP: Faults = {
    "descent": ("move *= step_size", "move *= -step_size"),
    "gradient not masked": ("grad if mask is None else mask * grad", "grad"),
    "step from the input": ("    move += d\n", ""),
    "step written over its start": ("    move += d\n", "    d += move\n    move = d\n"),
    "step not projected": ("project(ops, move, lower, upper, eps, norm)", "move"),
    "clipped to the box before the projection": (
        "project(ops, move, lower",
        "project(ops, ops.clip(move, lower, upper), lower",
    ),
    "L2 direction not normalised": (
        "return ray / divisor(ops, length)",
        "return ray",
    ),
    "L2 direction of the whole batch": (
        "axes, size = example_axes(grad)",
        "axes, size = tuple(range(len(grad.shape)))",
    ),
    "twice the share of coordinates in L1": ("L1_SHARE = 20", "L1_SHARE = 10"),
    "L1 ties dropped": ("size >= ops.kth_largest", "size > ops.kth_largest"),
    "L1 direction not normalised": ("return chosen / ops.maximum(length, 1.0)", "return chosen"),
    "start not emptied under the mask": (
        "noise if mask is None else ops.where(mask > 0, noise, 0.0)",
        "noise",
    ),
    "start not projected": ("return project(ops, start, lower, upper, eps, norm)", "return start"),
}

TARGET: Faults = {
    "smoothed over K - 1 classes": ("* b + smoothing / classes", "* b + smoothing / (classes - 1)"),
    "guard all the way": ("GUARD = 0.5", "GUARD = 1.0"),
    "guard on the wrong side": ("ops.maximum(b_y - p_y, 0.0)", "ops.maximum(p_y - b_y, 0.0)"),
    "guard ignored": ("if not guard:", "if True:"),
    "guard widens the smoothing": ("ops.minimum(ratio, smoothing)", "ratio"),
    "guard where the label is unlikely": ("a = ops.where(excess > 0", "a = ops.where(excess < 0"),
    "objective with the wrong sign": ("return -ops.sum(q * log_p", "return ops.sum(q * log_p"),
    "objective as a mean": (
        "return -ops.sum(q * log_p, axis=(0, 1))",
        "return -ops.sum(q * log_p, axis=(0, 1)) / q.shape[0]",
    ),
    "away from the target": ("(goal - one_hot)", "(one_hot - goal)"),
    "stalled where it is not": ("p_y > 1 - smoothing", "p_y < 1 - smoothing"),
    "margin with the label among the rivals": (
        "rivals(ops, logits, one_hot)",
        "logits",
    ),
    "margin with the wrong sign": ("return rival - ops", "return rival + ops"),
    "ratio over the second largest": ("for k in (1, 3, 4)", "for k in (1, 2, 4)"),
    "ratio of constants divided by 0": ("divisor(ops, spread)", "spread"),
    "ratio of three classes": ("[1]) < 4:", "[-1]) < 3:"),
    "attacks confused": ('if name == "margin":', 'if name != "margin":'),
}

FAULTS = {
    "apgd": APGD,
    "losses": LOSSES,
    "mask": MASK,
    "projection": PROJECTION,
    "start": START,
    "step": STEP,
    "target": TARGET,
}
