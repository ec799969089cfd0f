"""A small part of the digits, a network trained on it, and runs on it in either host."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosts import QUICK

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.experiment import Experiment, load_config
from openood_dream.pipelines import train as training

IMAGES = {"train": 20, "val": 10, "test": 10, "train_aux": 60}  # a class; of OOD lists, in all
OOD_IMAGES = 60


@pytest.fixture(scope="session")
def small(tmp_path_factory, digits) -> Path:
    """The data root of a small part of the digits."""
    root = tmp_path_factory.mktemp("small")
    (root / "images_classic").symlink_to(digits / "images_classic")
    for path in (digits / "benchmark_imglist" / "digits").iterdir():
        if path.suffix == ".json":
            target = root / "benchmark_imglist" / "digits" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text())
            continue
        rows, kept = read_imglist(path), {}
        for row in rows:
            kept.setdefault(row[1], []).append(row)
        limit = IMAGES.get(path.stem, OOD_IMAGES)
        write_imglist(root / "benchmark_imglist" / "digits" / path.name, sum((k[:limit] for k in kept.values()), []))
    return root


@pytest.fixture(scope="session")
def job(tiny, small, tmp_path_factory):
    """Builds the config of a run on the small data: layers over the tiny benchmark, a name, and overrides."""
    root = tmp_path_factory.mktemp("runs")

    def build(name: str, layers: list[str], *overrides: str, backend: str = "openood") -> Experiment:
        keys = {"backend": backend, "data_root": small, "root": root, "output_dir": root, "exp_name": name}
        keys |= {"num_gpus": 0, "num_workers": 0, "merge_option": "merge", "optimizer.num_epochs": 1}
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        return load_config([tiny.file, *layers], [*words, *overrides])

    return build


@pytest.fixture(scope="session")
def trained(job) -> Path:
    """A network trained by our own pipeline, and its checkpoint."""
    config = job("trained", ["pipelines/train/base.yml"], *QUICK, backend="standalone")
    return training.train(config) / "best.ckpt"
