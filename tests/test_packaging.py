"""What setup.py and pyproject.toml promise: lowest versions, extras, and that nothing which the core imports is an extra."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from openood_dream import doctor
from openood_dream.errors import InputError
from openood_dream.extras import EXTRA_OF, check_installed

SETUP = Path(__file__).parents[1] / "setup.py"
EXTRAS = {"report", "faiss", "gpu", "lora", "ray", "umap", "docs", "bench", "dev"}


def test_every_requirement_has_a_lowest_version():
    asked = [Requirement(word) for word in re.findall(r'"([A-Za-z0-9-]+>=[^"]+)"', SETUP.read_text(encoding="utf-8"))]
    assert {"torch", "numpy", "scipy", "pytest"} <= {one.name for one in asked}
    assert all([part.operator for part in one.specifier] == [">="] for one in asked)


def test_extras():
    assert set(metadata.metadata("openood-dream").get_all("Provides-Extra")) == EXTRAS
    assert set(EXTRA_OF.values()) <= EXTRAS
    assert [*doctor.requirements("gpu")] == ["faiss-gpu-cu12"]  # beside faiss-cpu neither can be imported
    assert {*doctor.requirements("report"), *doctor.requirements("faiss"), "ray"} <= {*doctor.requirements("dev")}
    assert not {"faiss-cpu", "matplotlib", "peft", "ray", "umap-learn"} & {*doctor.requirements()}


@pytest.mark.parametrize("module", EXTRA_OF)
def test_missing_extra_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        InputError, match=rf"^here: {module} is not .*pip install 'openood-dream\[{EXTRA_OF[module]}\]'"
    ):
        check_installed("here", module)


CORE = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(["faiss", "matplotlib", "ray", "umap", "tensorboard", "openood"]))
import openood_dream
for module in pkgutil.walk_packages(openood_dream.__path__, "openood_dream."):
    if module.name != "openood_dream.__main__":
        importlib.import_module(module.name)
from openood_dream import cli
sys.argv = ["openood-dream", "benchmark", "--config", "none.yml"]
cli.main()
"""


def test_core_imports_without_extras(tmp_path):
    done = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "benchmark: matplotlib is not installed; pip install 'openood-dream[report]'" in done.stderr
