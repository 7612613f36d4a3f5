"""A run on one page of HTML, which needs neither network nor script; all text in it is escaped."""

import json
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from html import escape
from importlib import resources
from string import Template

from .errors import expect, reading
from .report import audit_table, evaluation_table
from .runs import AUDIT, CONFIG, CURVES, DRIFT, EVALUATION, RESULT, SHEET, Run

LAYOUT = Template((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))


def page(run: Run) -> bytes:
    """What files of a run say, if they are there; DataError for one that is damaged."""
    body = ""
    for heading, (name, show) in PARTS.items():
        path = run.directory / name
        with reading(path, "delete it, or write it anew"):
            shown = show(path.read_bytes()) if path.exists() else f"There is no {name} yet."
        body += f"<section><h2>{heading}</h2>{shown}</section>\n"
    title = escape(f"spatlib run {run.directory.name}")
    return LAYOUT.substitute(title=title, body=body).encode(errors="backslashreplace")


def _picture(text: str, content: bytes) -> str:
    expect(content.startswith(b"\x89PNG"), "must be a PNG file")
    return f'<img alt="{text}" src="data:image/png;base64,{b64encode(content).decode()}">'


def _accuracies(content: bytes) -> str:
    return evaluation_table(json.loads(content)).html()


PARTS: dict[str, tuple[str, Callable[[bytes], str]]] = {
    "After the training": (RESULT, _accuracies),
    "Evaluation": (EVALUATION, _accuracies),
    "Training": (CURVES, partial(_picture, "loss and accuracies by epoch")),
    "Examples": (SHEET, partial(_picture, "inputs, perturbations, perturbed inputs")),
    "Audit by another network": (AUDIT, lambda content: audit_table(json.loads(content)).html()),
    "What it reads": (DRIFT, partial(_picture, "inputs before and after, with its readings")),
    "Settings": (CONFIG, lambda content: f"<pre>{escape(content.decode())}</pre>"),
}
