"""Every shipped training file trains an epoch as it is shipped: sizes alone are overridden. Inside OpenOOD: tests/openood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shipped import FILES, STUDENT, layers_of

from openood_dream.pipelines.train import train


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_trains_an_epoch_as_shipped(name, tiny, dream, tmp_path):
    def trained(name: str, *words: str) -> Path:
        keys = ["--root", str(tmp_path / "out"), "--output_dir", str(tmp_path / name)]
        return train(tiny.config(*keys, *words, layers=layers_of(name, tmp_path)))

    words = ["--network.checkpoint", str(trained(STUDENT[name]) / "best.ckpt")] if name in STUDENT else []
    record = json.loads((trained(name, *words) / "train.json").read_text())
    assert len(record["epochs"]) == 1
    assert not [text for text in record.get("warnings", []) if "outliers took part in 0" in text]
