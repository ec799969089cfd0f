"""What doctor says is true of this installation, and of one that lacks something."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
import torch

from openood_dream import doctor
from openood_dream._version import __version__
from openood_dream.openood import compat, host


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


def test_import_is_cheap():
    code = "import sys, openood_dream.doctor; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_names_machine_and_packages(command):
    done = command("doctor")
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    assert done.code == 0 and f"Python {version}" in done.out
    assert f"torch {metadata.version('torch')}" in done.out.replace("\n    ", " ")
    assert f"device: auto means {'cuda' if torch.cuda.is_available() else 'cpu'}" in done.out
    assert "OpenOOD" in done.out and f"openood-dream {metadata.version('openood-dream')}" in done.out


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch cannot be imported" in doctor.machine()[-1]


def test_missing_package(absent):
    absent("timm")
    assert any(line.startswith("timm: missing; pip install 'timm>=") for line in doctor.packages())
    assert not any("timm " in line for line in doctor.packages() if "missing" not in line)


def test_from_a_folder(monkeypatch):
    """Run from a checkout that is not installed, it says so and diagnoses the rest."""
    monkeypatch.setattr(doctor, "PACKAGE", "not-installed")
    found = doctor.text()
    assert f"not-installed {__version__}" in found and "is not installed" in found and "device: auto means" in found


def test_old_package(absent):
    absent("timm", "0.1.0")
    line = next(line for line in doctor.packages() if line.startswith("timm:"))
    assert "version 0.1.0" in line and f"expected {doctor.requirements()['timm'].specifier}" in line


def test_extra_lacks_a_package(absent):
    def state() -> str:
        return next(line for line in doctor.extras() if line.startswith("dev:"))

    assert "pytest missing" not in state()
    absent("pytest")
    assert "pytest missing" in state() and state().endswith("; pip install 'openood-dream[dev]'")


def test_requirements_of_an_extra():
    assert "torch" in doctor.requirements() and "pytest" not in doctor.requirements()
    assert list(doctor.requirements("ray")) == ["ray"]


def test_without_openood(monkeypatch):
    monkeypatch.setattr("openood_dream.openood.compat.installed", lambda name: name != "openood")
    lines = doctor.openood()
    assert lines[0].startswith(
        "OpenOOD is not installed; pip install --no-deps git+https://github.com/Jingkang50/OpenOOD"
    )
    assert lines[-1] == "backend: auto means standalone"


def test_broken_openood(monkeypatch):
    broken = {"found": True, "path": "/x", "version": None, "commit": None, "missing": {}, "error": "ImportError: no y"}
    monkeypatch.setattr(host, "status", lambda: broken)
    assert "does not work: ImportError: no y" in doctor.openood()


@pytest.mark.openood
@pytest.mark.skipif(not compat.installed("openood"), reason="OpenOOD is not installed")
def test_names_of_openood_and_ours():
    text = "\n".join(doctor.openood()).replace("\n    ", " ").replace("\n  ", " ")
    for name in ("dream_ood", "dream_id", "mixup", "timm:<model>", "resnet18_32x32", "knn", "nnguide", "test_ood"):
        assert name in text
    assert text.endswith("backend: auto means openood")
