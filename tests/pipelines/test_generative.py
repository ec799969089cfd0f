"""Generative networks through the pipelines: trained, and scored by likelihoods."""

from __future__ import annotations

import csv
import json

import pytest

from openood_dream.errors import InputError
from openood_dream.networks.generative.network import Generative
from openood_dream.pipelines.benchmark import benchmark
from openood_dream.pipelines.test import test as score
from openood_dream.store import tensors

METHODS = """
benchmark:
  seeds: [0]
  postprocessors: [likelihood, input_complexity]
  methods:
    vae: [networks/vae_small.yml, pipelines/train/frl.yml, {plain}]
    vae_frl: [networks/vae_small.yml, pipelines/train/frl.yml, {plain}, benchmarks/methods/frl.yml]
"""
PLAIN = """
trainer: {frequency: false}
network: {latent: 4, width: 4, channels: 1}
optimizer: {lr: 0.001, num_epochs: 1}
dataset: {image_size: 8, pre_size: 8}
"""


@pytest.mark.slow
def test_benchmark(tiny, tmp_path):
    (tmp_path / "plain.yml").write_text(PLAIN)
    (tmp_path / "methods.yml").write_text(METHODS.format(plain=json.dumps(str(tmp_path / "plain.yml"))))
    layers = [tiny.file, str(tmp_path / "methods.yml")]
    benchmark(layers, ["--root", str(tmp_path / "out")], methods=["vae", "vae_frl"])
    rows = {}
    for path in sorted((tmp_path / "out").rglob("ood.csv")):
        with open(path, newline="") as file:
            rows["/".join(path.parts[-4:-1])] = {row["dataset"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"vae/s0/likelihood", "vae/s0/input_complexity", "vae_frl/s0/frl"}
    assert all(row["ACC"] == "-" for run in rows.values() for row in run.values())
    assert 0 <= float(rows["vae_frl/s0/frl"]["nearood"]["AUROC"]) <= 100
    table = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "vae_frl" in table and "input_complexity" in table


@pytest.mark.slow
def test_checkpoint(tiny, tmp_path):
    experiment = tiny.config(
        *["--network.latent", "4", "--network.width", "4", "--network.channels", "1"],
        *["--dataset.image_size", "8", "--dataset.pre_size", "8"],
        *["--output_dir", str(tmp_path), "--exp_name", "scored", "--network.checkpoint", str(tmp_path / "a.ckpt")],
        layers=["networks/vae_small.yml", "postprocessors/frl.yml"],
    )
    tensors.write_checkpoint(tmp_path / "a.ckpt", Generative(experiment.network).state_dict())
    out = score(experiment)
    assert (out / "ood.csv").exists() and (tmp_path / "likelihoods").is_dir()
    with pytest.raises(InputError, match=r"a\.ckpt: .*high-frequency channel"):
        score(experiment.changed({"network.frequency": False}))
