"""What doctor says is true of this installation, and of one that lacks something."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
import torch

from openood_dream import diagnosis, openood


@pytest.fixture
def absent(monkeypatch):
    """Makes doctor believe that a distribution is not installed, or of another version."""
    version = metadata.version

    def pretend(name: str, other: str | None = None) -> None:
        def answer(asked: str) -> str:
            if asked != name:
                return version(asked)
            if other is None:
                raise metadata.PackageNotFoundError(asked)
            return other

        monkeypatch.setattr(metadata, "version", answer)

    return pretend


def test_importing_the_module_is_cheap():
    code = "import sys, openood_dream.diagnosis; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_doctor_names_python_torch_the_device_and_every_package(command):
    done = command("doctor")
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    assert done.code == 0 and f"Python {version}" in done.out
    assert f"torch {metadata.version('torch')}" in done.out.replace("\n    ", " ")
    assert f"device: auto means {'cuda' if torch.cuda.is_available() else 'cpu'}" in done.out
    assert "OpenOOD" in done.out and f"openood-dream {metadata.version('openood-dream')}" in done.out


def test_a_missing_package_is_named_with_the_command_that_gets_it(absent):
    absent("timm")
    assert any(line.startswith("timm: missing; pip install 'timm>=") for line in diagnosis.packages())
    assert not any("timm " in line for line in diagnosis.packages() if "missing" not in line)


def test_a_package_that_is_too_old_is_named_with_both_versions(absent):
    absent("timm", "0.1.0")
    line = next(line for line in diagnosis.packages() if line.startswith("timm:"))
    assert "version 0.1.0" in line and f"expected {diagnosis.requirements()['timm'].specifier}" in line


def test_an_extra_is_installed_only_where_all_its_packages_are(absent):
    def state() -> str:
        return next(line for line in diagnosis.extras() if line.startswith("dev:"))

    assert "pytest missing" not in state()
    absent("pytest")
    assert "pytest missing" in state() and state().endswith("; pip install 'openood-dream[dev]'")


def test_requirements_of_the_package_and_of_an_extra_do_not_mix():
    assert "torch" in diagnosis.requirements() and "pytest" not in diagnosis.requirements()
    assert list(diagnosis.requirements("ray")) == ["ray"]


def test_without_openood_doctor_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("openood_dream.openood.compat.installed", lambda name: name != "openood")
    lines = diagnosis.openood()
    assert lines[0].startswith(
        "OpenOOD is not installed; pip install --no-deps git+https://github.com/Jingkang50/OpenOOD"
    )
    assert lines[-1] == "backend: auto means standalone"


def test_an_openood_that_does_not_work_is_reported_with_its_error(monkeypatch):
    broken = {"found": True, "path": "/x", "version": None, "commit": None, "missing": {}, "error": "ImportError: no y"}
    monkeypatch.setattr(openood, "status", lambda: broken)
    assert "does not work: ImportError: no y" in diagnosis.openood()


@pytest.mark.openood
@pytest.mark.skipif(not openood.compat.installed("openood"), reason="OpenOOD is not installed")
def test_doctor_lists_what_of_openood_works_ours_included():
    text = "\n".join(diagnosis.openood()).replace("\n    ", " ").replace("\n  ", " ")
    for name in ("dream_ood", "dream_id", "mixup", "timm:<model>", "resnet18_32x32", "knn", "nnguide", "test_ood"):
        assert name in text
    assert metadata.version("openood") in text and text.endswith("backend: auto means openood")
