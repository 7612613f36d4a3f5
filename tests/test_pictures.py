"""What a user is shown of a run: pictures, a page, tables and bars."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch.utils.data import DataLoader, Dataset, Subset

import spatlib
from spatlib import DataError, Result, plots
from spatlib.data import as_dataset
from spatlib.evaluate import Evaluation
from spatlib.monitor import Monitor
from spatlib.page import page
from spatlib.report import EQUAL, audit_table, bar, evaluation, table
from spatlib.runs import EVALUATION, Run

from .running import CONFIG, TRAINING, copied, edit
from .test_report import hostile_report, in_batches, sample

NAMES = ["plane", "$cat_{", "<b>" + 30 * "x"]
HISTORY = [
    {"epoch": n, "loss": 2 / n, "adv_accuracy": 0.1, "val_clean": 0.2, "val_pgd10": 0.1}
    for n in (1, 2, 3)
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written as PNG."""
    figures, original = list[Figure](), Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        original(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def texts(figure: Figure) -> list[str]:
    return [found for text in figure.findobj(Text) if (found := text.get_text().strip())]


def framed(figure: Figure) -> list[bool]:
    """Which panels have a frame that stands out, row by row."""
    spines = [axes.spines["left"] for axes in figure.axes]
    return [to_hex(s.get_edgecolor()) == plots.ORANGE.lower() for s in spines]


def test_curves_name_their_loss_and_mark_the_best_epoch(drawn: list[Figure]) -> None:
    for loss in ("pgd", "trades", "mart"):
        plots.curves(HISTORY, replace(CONFIG, loss=loss), 2 if loss == "pgd" else None)
    marked, trades, mart = map(texts, drawn)
    for found, loss in zip((marked, trades, mart), ("PGD", "TRADES", "MART"), strict=True):
        assert f"training loss ({loss})" in found
    words = "epoch 2, the best in validation: its weights are kept"
    assert words in marked
    assert not any("best" in text for text in trades)
    for name in ("training, under its attack", "validation, clean", "validation, PGD-10"):
        assert name in marked
    assert "validation, PGD-1" not in marked  # which the history has not
    lines = [line for axes in drawn[0].axes for line in axes.lines if line.get_label() == words]
    assert [list(line.get_xdata()) for line in lines] == [[2, 2], [2, 2]]


def examples(mask: float) -> dict[str, Any]:
    images = {"x": np.zeros((3, 4, 4, 1), np.float16), "x_adv": np.full((3, 4, 4, 1), 0.25)}
    read = {"y": [0, 1, 2], "clean": [0, 1, 0], "adversarial": [1, 1, 1]}
    labels = {name: np.array(classes) for name, classes in read.items()}
    return {**images, "mask": np.full((3, 4, 4, 1), mask), **labels}


def test_a_sheet_says_what_is_zero_what_was_fooled_and_the_names(drawn: list[Figure]) -> None:
    plots.sheet(examples(0.5), (0, 1), NAMES)
    plots.sheet(examples(1.0), (0, 1), ())
    with_mask, without = drawn
    found = texts(with_mask)
    assert "grey is zero" in " ".join(with_mask.get_suptitle().split())
    heads = ["input", "budget of each pixel\n(black 0, white eps)", "perturbation\n(grey is zero)"]
    assert [head for head in heads if head in found] == heads
    assert found.count("-0.25 to 0.25") == 3
    assert "label: plane\nread as: plane" in found
    assert f"label: <b>{15 * 'x'}\nread as: plane" in found
    assert [text for text in found if "fooled" in text] == ["read as: $cat_{\nfooled"]
    assert framed(with_mask) == [False] * 3 + [True] + [False] * 8  # the first of the last column
    assert "label: 2\nread as: 0" in texts(without)
    assert not [text for text in texts(without) if "channel" in text]
    plots.sheet(
        {k: v.repeat(2, -1) if v.ndim == 4 else v for k, v in examples(1).items()}, (0, 1), ()
    )
    assert "input\n(channel 1)" in texts(drawn[-1])
    assert len(without.axes) == 9
    perturbation = with_mask.axes[2].images[0].get_array()
    assert perturbation is not None
    assert (perturbation == 1).all()


class Pictures(Dataset[Any]):
    classes = ("round", "square", "thin")

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(1, 4, 4), index % 3


@pytest.mark.parametrize("loads", [False, True])
def test_a_run_draws_a_sheet_of_data_sets_and_loaders_and_leaves_the_generator(
    loads: bool, tmp_path: Path, drawn: list[Figure]
) -> None:
    data: Any = Subset(Pictures(), range(8))
    data = DataLoader(data, batch_size=4, shuffle=True) if loads else data
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    plan = replace(TRAINING, epochs=1, batch_size=4, validation=0, ema=0.0)
    state = torch.get_rng_state()
    spatlib.train(model, data, config=CONFIG, training=plan, run_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert sum(text.startswith("label: ") for text in texts(drawn[-1])) == 4
    assert any("label: round" in text for text in texts(drawn[-1]))


def test_names_of_classes_are_found_in_the_data_and_what_wraps_them() -> None:
    assert as_dataset(DataLoader(Subset(Pictures(), [0])), True).class_names == Pictures.classes
    named = spatlib.Dataset(train=(1, 2), source={"name": "cifar10"})
    assert named.class_names[:2] == ["airplane", "automobile"]
    assert as_dataset("digits", True).class_names == ()


def test_an_audits_picture_has_its_figures_and_what_the_judge_reads(drawn: list[Figure]) -> None:
    x, y, sure = np.zeros((2, 4, 4, 1)), np.array([0, 1]), np.array([0.75, 0.5])
    head = "training attack\nsuccess 50.0%, drift 25.0%"
    readings = [("input", x, y, sure), (head, x, np.array([1, 1]), sure)]
    plots.drift(y, readings, (0, 1), NAMES)
    found = texts(drawn[0])
    caption = " ".join(drawn[0].get_suptitle().split())
    assert caption.startswith("What a judge")
    assert caption.endswith(EQUAL)
    assert head in found
    assert "label: plane\njudge: plane (75%)" in found
    assert "label: plane\njudge: $cat_{ (75%)" in found
    assert framed(drawn[0]) == [False, True, False, False]


FACTS = {"count": 9, "known": 8, "drift": 0.25, "evidence_lost": 1.0, "rival_gain": 0.5}
FACTS |= {"entropy_gain": -0.1, "l2": 0.3, "ssim": None, "success": 0.5}
AUDITED = {
    "judge": "<i>&",
    "eps": 0.1,
    "norm": "Linf",
    "attacks": {"training": FACTS, "pgd": FACTS},
}


def test_an_audit_is_a_table_of_its_attacks() -> None:
    head, *rows, note, more = str(audit_table(AUDITED)).splitlines()
    assert head.strip() == "training attack  plain PGD"
    assert [row.split()[-1] for row in rows] == ["50.0%", "25.0%", "1", "0.5", "-0.1", "0.3"]
    assert rows[2].startswith("evidence lost")
    assert f"{note} {more}".startswith("judge <i>& reads 8 of 9 examples correctly; Linf eps 0.1.")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen, self.sources = set[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_a_page_is_whole_without_a_network_and_escapes_what_files_say(
    own: Any, tmp_path: Path
) -> None:
    (place := tmp_path / "<b>run\udcff").mkdir()  # of a byte that is no UTF-8
    directory, png = copied(own[1], place), b"\x89PNG"
    edit(directory, lambda settings: settings.update(git="<script src=//evil></script>$title"))
    run = Run(directory, resume=True)
    assert "There is no audit.json yet." in page(run).decode()
    report = hostile_report()
    facts = evaluation("SPAT", report, "<i>", {"</style>": report})
    run.write(EVALUATION, json.dumps(facts).encode())
    run.write("audit.json", json.dumps(AUDITED).encode())
    for name in ("curves.png", "sheet.png", "audit.png"):
        run.write(name, png)
    text = page(run).decode()
    tags = Tags(text)
    assert tags.sources == ["data:image/png;base64,iVBORw=="] * 3
    assert not {"script", "b", "i", "link"} & tags.seen
    assert "default-src 'none'" in text
    for words in (
        "&lt;script src=//evil",
        "$title",
        "&lt;i&gt; data",
        ">&lt;/style&gt;<th",
        "judge &lt;i&gt;&amp;",
    ):
        assert words in text
    assert "&quot;epochs&quot;: 2" in text
    assert "There is no" not in text
    for name, damaged in ((EVALUATION, b"[]"), ("audit.json", b"{}"), ("audit.png", b"GIF")):
        run.write(name, damaged)
        with pytest.raises(DataError, match=rf"{name} .*: delete it, or write it anew"):
            page(run)
        (directory / name).unlink()


def test_a_link_in_a_run_does_not_lead_a_writer_out_of_it(own: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    directory, mine = copied(own[1], tmp_path / "run"), tmp_path / "mine"
    mine.write_text("of the user")
    (directory / ".report.html.part").symlink_to(mine)
    (directory / "report.html").symlink_to(mine)
    Run(directory, resume=True).write("report.html", b"new")
    assert (directory / "report.html").read_bytes() == b"new"
    assert mine.read_text() == "of the user"


def test_tables_fit_eighty_columns_whatever_the_attacks() -> None:
    report = sample(("pgd", "margin", "targeted", "apgd-ce", "apgd-t", "apgd"), 20, 3)
    facts = report.as_json()
    text = str(table({"standard": facts, "SPAT": facts}, "; these are the training data"))
    assert max(map(len, text.splitlines())) <= 80
    facts = sample(("pgd", "margin", "apgd")).as_json()
    of_train = dict.fromkeys(("standard", "PGD-AT", "SPAT"), facts)
    assert max(map(len, str(table(of_train)).splitlines())) <= 80
    assert " ".join(text.split()).endswith("3 random starts; these are the training data")
    joint = Evaluation(CONFIG, ("targeted", "apgd", "margin"), joint=True)
    verdicts = dict.fromkeys(joint.keys, np.ones(8, bool))
    text = str(joint.report(in_batches(np.arange(8) % 2, 10, verdicts)))
    assert max(map(len, text.splitlines())) <= 80
    assert "; worst: APGD-CE-20, then CW margin PGD-20, then" in " ".join(text.split())


def test_a_notebook_shows_a_table_with_escaped_text() -> None:
    report = hostile_report()
    parts: Any = {"model": None, "history": [], "config": CONFIG, "training": TRAINING}
    for shown in (report, Result(**parts, report=report, baselines={"standard": report})):
        text = shown._repr_html_()
        assert "<script>" not in text
        assert '<th scope="row">&lt;script&gt;&amp;<td>87.5 [52.9, 97.8]' in text
        assert "<p>accuracy in % [95 % interval] on 8 examples" in text
    assert '<th scope="col">standard<th scope="col">SPAT<tr>' in text
    assert "not evaluated" in Result(**parts)._repr_html_()


def test_a_bar_is_in_terminals_and_notebooks_and_says_which_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert bar(progress=True).disable
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not bar(progress=True).disable
    assert bar(progress=False).disable
    shown = Monitor(replace(TRAINING, progress=True), label="standard", turn="1/3").progress(3)
    assert shown.desc == "standard 1/3"
