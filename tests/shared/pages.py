"""What tests of the documentation share: the blocks of its pages, and numbers that make what they show small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page that are of a language."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [text for named, text in every if named == language]


def commands(page: Path) -> list[list[str]]:
    """The openood-dream command lines of a page, as words."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("openood-dream ")]


def write_files(page: Path, folder: Path) -> None:
    """Writes the blocks of a page that begin with the name of a YAML or Python file."""
    for text in [*blocks(page, "yaml"), *blocks(page, "python")]:
        if match := re.match(r"# ([\w/]+\.(yml|py))\n", text):
            (folder / match[1]).parent.mkdir(exist_ok=True)
            (folder / match[1]).write_text(text)


# Lies over the config that a page shows.
SMALL = """
device: cpu
precision: float32
num_workers: 0
num_gpus: 0
backend: BACKEND
dataset: {pre_size: 16, image_size: 16, num_workers: 0}
ood_dataset: {num_workers: 0}
preprocessor: {name: base}
network: {name: 'timm:resnet10t', args: {channels: [8, 8, 16, 16]}}
optimizer: {num_epochs: 1, lr: 0.1, momentum: 0.9, weight_decay: 0.0005}
dream:
  generator: {train: small, steps: 30, vae_steps: 15, batch_size: 16, text_dim: 16}
  space: {network: 'timm:resnet10t', network_args: {channels: [8, 8, 16, 16]}, epochs: 2, batch_size: 16}
  outliers: {k: 3, sigma: 0.3, select: 5, n_boundary: 3, n_draws: 20, rounds: 1}
  synthesis: {per_class: 4, steps: 2, guidance: 2.0, size: 16, save_size: 16}
  filter: {distance: 0.01}
"""
