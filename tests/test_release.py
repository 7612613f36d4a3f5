"""What users get: a wheel that works without the repository, the site, the file to cite."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import spatlib
import spatlib_tf
import spatlib_torch

ROOT = Path(__file__).parents[1]
PACKAGES = (spatlib, spatlib_torch, spatlib_tf)
CHECK = """
import sys, spatlib, spatlib.page
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
for package in ("spatlib", "spatlib_torch", "spatlib_tf"):
    place = Path(find_spec(package).origin).parent
    assert place.is_relative_to(sys.prefix), place
    assert (place / "py.typed").is_file()
assert version("spatlib") == spatlib.__version__
"""


def run(*command: str | Path, cwd: Path) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=kept | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_trains_where_the_repository_is_not(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(Path(package.__file__).parent, source / package.__name__)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    run(*pip, "wheel", "--quiet", *options, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("spatlib-*.whl")
    shutil.rmtree(source)
    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=tmp_path)
    python = fresh / "bin" / "python"
    run(*pip, "--python", python, "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    # Dependencies are those of here; a path in a .pth brings no editable installation with it.
    (place,) = fresh.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name == place.name]
    (place / "dependencies.pth").write_text("\n".join(others))
    run(python, "-c", CHECK, cwd=tmp_path)
    options = ("--no-baseline", "--epochs", "1", "--steps", "1", "--limit", "99")
    printed = run(fresh / "bin" / "spatlib", "train", "digits", *options, cwd=tmp_path)
    assert "worst" in json.loads(printed.splitlines()[-1])["metrics"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a broken link or anchor, or a page that the menu lacks, is an error."""
    place = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", place, cwd=ROOT)
    return place


def test_the_site_asks_for_nothing_from_elsewhere(site: Path) -> None:
    pages = [page.read_text() for page in site.glob("*.html")]
    assert len(pages) > len([*(ROOT / "docs").glob("*.md")])  # and one for what is not found
    for page in pages:
        asked = re.findall(r'<(?!a )\w+[^>]* (?:src|href)="(?:https?:)?//[^"]*"', page)
        assert asked == []


def test_each_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "reference.html").read_text()
    for package in PACKAGES:
        for name in set(package.__all__) - {"RECIPES"}:  # a table of docs/using.md
            assert re.search(rf'id="{package.__name__}\.({name}\.)?{name}"', page), name
    assert not re.findall(r":(?:class|func|meth|mod):", page)


def test_the_file_to_cite_has_what_its_schema_asks_for() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    for work in (cited, *cited["references"]):
        assert {"title", "authors", "type" if work is not cited else "license"} <= set(work)
        for author in work["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
