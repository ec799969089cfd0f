"""A benchmark of grey images, with far-OOD sets alone and a group of one's own."""

from __future__ import annotations

import json

import pandas as pd
from helpers import weights

from openood_dream.pipelines.benchmark import benchmark

OWN = """
dataset: {channels: 1}
ood_dataset:
  nearood: null
  petals:
    datasets: [flowers]
    flowers:
      imglist_pth: '@{ood_dataset.farood.flower.imglist_pth}'
      data_dir: '@{ood_dataset.farood.flower.data_dir}'
  farood: {datasets: [scrambled]}
"""


def test_grey_images_and_other_groups(tiny, dream, tmp_path):
    own = tmp_path / "own.yml"
    own.write_text(OWN)
    words = [
        "--root",
        str(tmp_path / "out"),
        "--dream.cache_dir",
        str(tiny.root / "dream"),
        "--dream.synthesis.per_class",
        "4",
    ]
    report = benchmark([tiny.file, str(own)], words, methods=["base", "dream_ood"], seeds=1)
    table = pd.read_csv(tmp_path / "out" / "leaderboard.csv")
    assert {"far_auroc", "petals_auroc"} <= set(table) and "near_auroc" not in table and len(table) == 6
    for column in ("far_auroc", "petals_auroc", "petals_fs_auroc", "id_acc"):
        assert table[column].between(0, 100).all()
    assert "petals AUROC" in report.read_text(encoding="utf-8")
    folder = tmp_path / "out" / "runs" / "dream_ood" / "s0"
    first = next(iter(weights(folder).values()))
    assert first.shape[1] == 1
    record = json.loads((folder / "train.json").read_text())
    assert record["outlier_data"] == "imagined (knn)"
    assert (
        record["inputs"]["outliers"] == dream.training_images().identity
    )  # drawn in colours, whatever the network sees
