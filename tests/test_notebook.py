"""The notebooks of examples/ run, and hold what they show."""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from notebooks import EXAMPLES, executed

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def kinds(node: nbformat.NotebookNode) -> list[set[str]]:
    """What each cell of code shows: the kinds of its outputs that are no text."""
    cells = [cell for cell in node.cells if cell.cell_type == "code"]
    return [{kind for one in cell.outputs for kind in one.get("data", {})} for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_stored_and_of_no_machine(path):
    node = nbformat.read(path, as_version=4)
    nbformat.validate(node)
    shown = set.union(*kinds(node))
    assert {"image/png", "text/html", "text/plain"} <= shown
    outputs = json.dumps([cell.get("outputs") for cell in node.cells])
    assert not re.search(r'[" ](/[a-z]+/|[A-Z]:\\)', outputs) and "stderr" not in outputs and "Traceback" not in outputs
    assert path.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path, tmp_path):
    assert kinds(executed(path, tmp_path)) == kinds(nbformat.read(path, as_version=4))
