"""Every shipped training file, and the sizes that make an epoch of it a matter of seconds."""

from __future__ import annotations

from pathlib import Path

from openood_dream.config.files import shipped_configs
from openood_dream.experiment import load_config
from openood_dream.trainers.known import TRAINERS

FILES = sorted(path.stem for path in (shipped_configs() / "pipelines" / "train").glob("*.yml"))
NETWORKS = {"frl": "vae_small", "frl_glow": "glow_small", "frl_pixelcnnpp": "pixelcnnpp_small"}
STUDENT = {"oal": "oal_student", "energy": "base"}  # the file that makes the weights that another begins with
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


def layers_of(name: str, folder: Path) -> list[str]:
    """The config files that train a shipped file as it is, but for sizes.

    Args:
        name: one of FILES.
        folder: where the file with the sizes goes.
    """
    found = [f"networks/{NETWORKS[name]}.yml"] if name in NETWORKS else []
    found += [f"pipelines/train/{name}.yml"]
    cls = TRAINERS[load_config(["benchmarks/digits.yml", *found]).at("trainer.name")]
    found += ["datasets/digits/digits_oe.yml"] if name == "oe" else ["preprocessors/dream.yml"] if cls.auxiliary else []
    text = OWN[name] if name == "fast" else SIZES + OWN.get(name, "")
    text += "\noptimizer: {num_epochs: 1}" if name == "fast" else ""
    if not cls.generative and name != "fast":
        text += f"\nnetwork: {{args: {TINY_ARGS}}}"
    (folder / f"{name}-sizes.yml").write_text(text)
    return [*found, str(folder / f"{name}-sizes.yml")]
