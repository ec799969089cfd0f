"""An empty current folder to write configs in, with a few shipped configs elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from openood_dream.config import files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shipped = tmp_path / "shipped"
    for name in ("datasets/digits.yml", "datasets/cifar10.yml", "pipelines/train.yml"):
        (shipped / name).parent.mkdir(parents=True, exist_ok=True)
        (shipped / name).write_text(f"from: {name}\n")
    monkeypatch.setattr(files, "shipped_configs", lambda: shipped)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
