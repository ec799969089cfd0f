"""OpenOOD's needs on today's libraries are met inside the block, and all is as before after it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from openood_dream.errors import InputError
from openood_dream.openood import compat


@pytest.fixture
def lacking(monkeypatch):
    """An extra that is not installed."""
    monkeypatch.setitem(compat.EXTRAS, "an_absent_package", ("the postprocessor x", "absent-package"))


def test_missing_extra_says_what_it_is_for(lacking):
    with compat.enabled():
        from an_absent_package.deep import Thing, function

        class Subclass(Thing):
            pass

        for use in (Thing, function, Subclass, Thing.create):
            with pytest.raises(
                InputError, match="OpenOOD needs an_absent_package for the postprocessor x.*pip install"
            ):
                use()


def test_editable_package_is_installed(lacking, monkeypatch, tmp_path):
    class Editable:
        """What setuptools leaves for a package that lies in a checkout."""

        @staticmethod
        def find_spec(name: str, path=None, target=None):
            if name != "a_package_elsewhere":
                return None
            return importlib.util.spec_from_file_location(
                name, tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
            )

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    with compat.enabled():
        assert not compat.installed("an_absent_package")
        assert compat.installed("a_package_elsewhere") and compat.folder("a_package_elsewhere") == str(tmp_path)


def test_a_mere_folder_is_not_installed(monkeypatch, tmp_path):
    (tmp_path / "a_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not compat.installed("a_folder")


def test_after_the_block_an_extra_is_missing(lacking):
    with compat.enabled():
        importlib.import_module("an_absent_package.deep")
    assert not [name for name in sys.modules if name.startswith("an_absent_package")]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("an_absent_package")


def test_broken_extra_disables_what_needs_it(monkeypatch, tmp_path):
    (tmp_path / "a_broken_package.py").write_text("import another_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(compat.EXTRAS, "a_broken_package", ("the preprocessor y", "broken-package"))
    with compat.enabled():
        from a_broken_package.deep import Thing

        with pytest.raises(
            InputError, match="the preprocessor y, and it cannot be imported .No module named 'another_"
        ):
            Thing()
    assert "cannot be imported" in compat.missing()["a_broken_package"]
    with pytest.raises(ModuleNotFoundError, match="another_that_is_not_there"):
        importlib.import_module("a_broken_package")


FAISS = """
import inspect, sys
import faiss
from openood_dream.openood import compat

def state():
    owners = [faiss, *(value for value in vars(faiss).values() if inspect.isclass(value))]
    return {(str(owner), key): id(value) for owner in owners for key, value in vars(owner).items() if key != "contrib"}

before = state()
compat.enable(cpu=True)
compat.enable()
assert faiss.IndexFlatL2(2).add_numpy and faiss.StandardGpuResources
compat.disable()
assert state() == before and compat.TENSORS not in sys.modules
"""


def test_faiss_is_as_before():
    done = subprocess.run([sys.executable, "-c", FAISS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_other_packages_stay_missing():
    with compat.enabled(), pytest.raises(ModuleNotFoundError):
        importlib.import_module("a_package_that_openood_does_not_know")


def test_missing_has_a_line_for_each_extra(lacking):
    assert "torch" not in compat.missing()
    assert compat.missing()["an_absent_package"].endswith("it is not installed; pip install absent-package")


def test_names_that_numpy_2_removed():
    before = set(vars(np))
    with compat.enabled():
        assert np.float32 in np.sctypes["float"] and np.float is float
    assert set(vars(np)) == before


def test_cpu_stands_in_for_cuda(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    with compat.enabled(cpu=True):
        layer = torch.nn.Linear(2, 2).cuda()
        made = [torch.zeros(2, device="cuda:0"), torch.ones(1).cuda(), torch.ones(1).to("cuda"), layer.weight]
        made += [torch.eye(2, device=torch.device("cuda")), layer(torch.ones(1, 2).cuda())]
        made += torch.load(tmp_path / "a.ckpt").values()
        made += [torch.load(tmp_path / "a.ckpt", map_location="cuda")["a"]]
    assert {tensor.device.type for tensor in made} == {"cpu"}


def test_torch_is_as_before():
    names = [(torch.Tensor, "cuda"), (torch.nn.Module, "cuda"), (torch, "load")]
    names += [(torch.nn.parallel, "DistributedDataParallel"), (torch.nn.SyncBatchNorm, "convert_sync_batchnorm")]
    before = [getattr(owner, name) for owner, name in names]
    with pytest.raises(ZeroDivisionError), compat.enabled(cpu=True):
        assert all(getattr(owner, name) != value for (owner, name), value in zip(names, before))
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name in names] == before
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.zeros(1, device="cuda")


def test_enable_lasts_until_disable():
    before = "sctypes" in vars(np)  # NumPy 1 has it
    compat.enable(cpu=True)
    compat.enable(cpu=True)
    try:
        assert torch.zeros(1, device="cuda").device.type == "cpu"
    finally:
        compat.disable()
    assert ("sctypes" in vars(np)) == before and torch.Tensor.cuda is not compat._stay


def test_question_that_nobody_can_answer(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="--merge_option merge"):
        compat._answer("merge? (y/n)")
