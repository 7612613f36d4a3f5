"""Who says that the meaning is kept? Drift at equal success, by judges that are not all networks.

    python -m benchmarks.judges digits

Attacks of growing eps on PGD-AT's network of seed 0, read by PGD-AT's network of another seed, k
nearest neighbours, a support vector machine and a random forest. Appends to judges_digits.csv, and
leaves out what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from torch import Tensor, nn

from spatlib.audit import audit
from spatlib.evaluate import attacked_examples
from spatlib_torch import engine

from .evidence import experiment, parser
from .evidence_arms import control, mask
from .figures import ATTACKS, AUDITED, COMPARED, SIZES, STEPS
from .harness import append, rows_of

SPARSE: dict[str, tuple[dict[str, Any], str]] = {
    f"{score}, {share} alone": (mask(score, keep=keep, floor=0.0), "")
    for score, share, keep in (
        ("min", "a quarter", 0.25),
        ("min", "half", 0.5),
        ("random", "half", 0.5),
    )
}
LEAST = 1e-6  # probability, below which its logarithm says nothing


class Judge(nn.Module):
    """Any classifier of scikit-learn as a network: the logarithms of its probabilities."""

    def __init__(self, classifier: Any, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__()
        self.classifier = classifier.fit(x.reshape(len(x), -1), y)

    def forward(self, x: Tensor) -> Tensor:
        p = self.classifier.predict_proba(x.flatten(1).numpy())
        return torch.as_tensor(np.log(np.maximum(p, LEAST)), dtype=torch.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    runs = experiment(parser("judges", __doc__).parse_args(arguments))
    target, threat = runs.trained("pgd", 0).model.eval(), runs.setting.config
    x, y = (np.asarray(part) for part in runs.split(0).train)
    judges: dict[str, nn.Module] = {
        "PGD-AT, another seed": runs.judge.model.eval(),
        "5 nearest neighbours": Judge(KNeighborsClassifier(5), x, y),
        "SVM": Judge(CalibratedClassifierCV(SVC(), ensemble=False), x, y),
        "forest": Judge(RandomForestClassifier(300, random_state=0, n_jobs=1), x, y),
    }
    known = {row["attack"] for row in rows_of(f"judges_{runs.name}")}
    for name, (settings, kind) in (ATTACKS | SPARSE).items():
        if name in known:
            continue
        found: dict[str, list[float]] = {judge: [] for judge in ("success", *judges)}
        sizes = np.minimum(threat.eps * SIZES, threat.bounds[1] - threat.bounds[0])
        for eps in sizes:
            config = replace(threat, eps=eps, step_size=None, steps=STEPS, **settings)
            with control(kind):
                seen = attacked_examples(engine, target, runs.test, config, AUDITED)
            fooled = (seen["adversarial"] != seen["y"])[seen["clean"] == seen["y"]]
            found["success"].append(float(fooled.mean()))
            before, after = (np.moveaxis(seen[key], -1, 1) for key in ("x", "x_adv"))
            for judge, network in judges.items():
                found[judge].append(audit(network, before, after, seen["y"]).drift)
        needed = np.interp(COMPARED, found["success"], sizes, right=np.nan)
        drifts = {judge: float(np.interp(needed, sizes, found[judge])) for judge in judges}
        append(f"judges_{runs.name}", {"attack": name, "eps": float(needed), **drifts})


if __name__ == "__main__":
    main()
