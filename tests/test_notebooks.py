"""Committed notebooks say what their .py sources say, were executed, and hold nothing that a reader must not get.

Running them again is the other half of `make test` (nbval).
"""

import json
import re
from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[tuple[str, str, list[str]]]:
    """(type, source, tags) of every cell."""
    return [(c.cell_type, c.source.strip(), c.metadata.get("tags", [])) for c in jupytext.read(path).cells]


def outputs(path: Path) -> list[dict]:
    return [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]


def test_every_notebook_has_its_source_and_the_other_way_round():
    assert [p.stem for p in NOTEBOOKS] == sorted(p.stem for p in FOLDER.glob("[0-9][0-9]_*.py"))


@notebook
def test_source_and_notebook_agree(path):
    """If this fails: jupytext --sync notebooks/NN_name.py"""
    assert cells(path) == cells(path.with_suffix(".py"))


@notebook
def test_it_opens_without_a_question(path):
    metadata = json.loads(path.read_text())["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in metadata, "widget state: GitHub refuses to render it; use minirodin.progress"


@notebook
def test_it_was_executed_in_order_and_without_errors(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code if "".join(cell["source"]).strip()]
    assert None not in counts and counts == sorted(counts)
    assert not [o for o in outputs(path) if o["output_type"] == "error"]
    assert any("image/png" in o.get("data", {}) for o in outputs(path)), "a chapter without a picture"


@notebook
def test_it_is_small_and_tells_nothing_of_the_machine(path):
    assert path.stat().st_size < 1.5e6
    text = path.read_text()
    assert not re.search(r"/(home|root|work|Users|tmp)/\w", text), "a path of somebody's machine"


@notebook
def test_one_parameters_cell_and_no_special_case_for_a_preset(path):
    tags = [tag for _, _, tags in cells(path) for tag in tags]
    assert tags.count("parameters") == 1
    code = "\n".join(source for kind, source, _ in cells(path) if kind == "code")
    assert not re.search(r"\bif\b.*\b(smoke|small|full)\b", code)
    long = [source for kind, source, _ in cells(path) if kind == "code" and source.count("\n") > 30]
    assert not long, long
