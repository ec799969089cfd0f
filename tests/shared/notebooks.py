"""Runs the notebooks of examples/; `python tests/shared/notebooks.py` stores what they show in them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def executed(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook run from top to bottom in a folder; raises where a cell does."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["PYTHONPATH"] = str(EXAMPLES.parent)
    node = nbformat.read(notebook, as_version=4)
    NotebookClient(node, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return node


def stripped(node: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook without what is of one machine or one hour: timings, versions, and what went to standard error."""
    node.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(node.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    return node


if __name__ == "__main__":
    for path in sys.argv[1:] or sorted(EXAMPLES.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(stripped(executed(Path(path), Path(scratch))), path)
