"""Every shipped training file trains an epoch as it is shipped: sizes alone are overridden. Inside OpenOOD: tests/openood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openood_dream.config.files import shipped_configs
from openood_dream.pipelines.train import train
from openood_dream.trainers.known import TRAINERS

FILES = sorted(path.stem for path in (shipped_configs() / "pipelines" / "train").glob("*.yml"))
NETWORKS = {"frl": "vae_small", "frl_glow": "glow_small", "frl_pixelcnnpp": "pixelcnnpp_small"}
TINY_ARGS = "{channels: [8, 8, 16, 16], pretrained: false}"
SIZES = """
dataset: {pre_size: 16, image_size: 16, train: {batch_size: 16}}
optimizer: {num_epochs: 1}
"""
# files -> sizes of the method
OWN = {
    "vos": "trainer: {sample_number: 32, sample_from: 50, start_epoch: 1}",
    "npos": "trainer: {trainer_args: {sample_number: 40, sample_from: 20, K: 3, select: 4, ID_points_num: 5, start_epoch_KNN: 1}}",
    "oal": f"trainer: {{teacher: {{network: timm:resnet10t, args: {TINY_ARGS}, epochs: 1}}}}",
    "dream_id_imagenet100": "dream: {outliers: {k: 5, select: 10, n_boundary: 5, n_draws: 20, rounds: 1}, space: {per_class: 30}}",
    "fast": "network: {args: null}\ndataset: {pre_size: 32, image_size: 32, train: {batch_size: 64}}",
    "frl": "network: {latent: 8, width: 8}",
    "frl_glow": "network: {width: 8, levels: 2, steps: 2}",
    "frl_pixelcnnpp": "network: {resnets: 1, filters: 8}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_trains_an_epoch_as_shipped(name, tiny, dream, tmp_path):
    cls = TRAINERS[tiny.config(layers=[f"pipelines/train/{name}.yml"]).trainer.name]
    layers = [f"networks/{NETWORKS[name]}.yml"] if name in NETWORKS else []
    layers += [f"pipelines/train/{name}.yml"]
    layers += (
        ["datasets/digits/digits_oe.yml"] if name == "oe" else ["preprocessors/dream.yml"] if cls.auxiliary else []
    )
    text = OWN[name] if name == "fast" else SIZES + OWN.get(name, "")
    text += "\noptimizer: {num_epochs: 1}" if name == "fast" else ""
    if not cls.generative and name != "fast":
        text += f"\nnetwork: {{args: {TINY_ARGS}}}"
    (tmp_path / "sizes.yml").write_text(text)
    root = tmp_path / "out"
    keys = ["--root", str(root), "--output_dir", str(tmp_path / "run")]
    folder = train(tiny.config(*keys, layers=[*layers, str(tmp_path / "sizes.yml")]))
    record = json.loads((Path(folder) / "train.json").read_text())
    assert len(record["epochs"]) == 1
    assert not [text for text in record.get("warnings", []) if "outliers took part in 0" in text]
