"""What tests of several wings share: the tiny digits benchmark, and how a command ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from openood_dream.experiment import Experiment, load_config

# The digits chain with networks and step counts so small that all of it runs in seconds. It lies over the shipped
# configs of data and training, but takes no network and no imagination from them: those are tuned for quality.
EMPTY = "{dream: {}, network: {}}"
TINY = """
include: [datasets/digits/digits.yml, datasets/digits/digits_ood.yml, pipelines/train/base.yml, empty.yml]
root: {root}
data_root: {data}
output_dir: '@{{root}}'
exp_name: "runs/'@{{method}}'/s'@{{seed}}'"
method: '@{{trainer.name}}'
num_workers: 0
num_gpus: 0
backend: standalone
device: cpu
precision: float32
pipeline: {{name: benchmark}}
postprocessor: {{APS_mode: false}}
preprocessor: {{name: base, horizontal_flip: false}}
network:
  name: timm:resnet10t
  args: {{channels: [8, 8, 16, 16]}}
  num_classes: '@{{dataset.num_classes}}'
  pretrained: false
  checkpoint: null
  num_gpus: 0
optimizer: {{num_epochs: 1}}
dataset:
  pre_size: 16
  image_size: 16
  train: {{imglist_pth: {train}, batch_size: 64}}
dream:
  class_names: [zero, one, two, three, four, five]
  generator: {{train: small, steps: 30, vae_steps: 15, batch_size: 16, text_dim: 16}}
  space:
    network: timm:resnet10t
    network_args: {{channels: [8, 8, 16, 16]}}
    epochs: 10
    batch_size: 32
    per_class: 30
  outliers: {{method: knn, k: 5, sigma: 0.15, select: 10, n_boundary: 5, n_draws: 20, keep: 2, rounds: 1}}
  synthesis: {{per_class: 4, steps: 2, guidance: 2.0, batch_size: 8, size: 16, save_size: 16, shard_size: 10}}
  cache_dir: "'@{{root}}'/dream"
benchmark:
  seeds: [0, 1]
  postprocessors: [msp, ebo, knn]
  methods:
    base: [benchmarks/methods/base.yml]
    oe: [pipelines/train/oe.yml, datasets/digits/digits_oe.yml]
    dream_ood: [pipelines/train/dream_ood.yml, preprocessors/dream.yml]
"""


class Tiny(NamedTuple):
    """The tiny benchmark: its config file, and the root under which the shared chain keeps its artifacts."""

    file: str
    root: Path

    def config(self, *overrides: str, layers: list[str] = []) -> Experiment:  # noqa: B006
        return load_config([self.file, *layers], overrides)

    def method(self, name: str, *overrides: str) -> Experiment:
        layers = self.config().benchmark.methods[name]
        return self.config("--method", name, *overrides, layers=layers)


def write_tiny(folder: Path, **paths: Path) -> Tiny:
    """Writes the tiny benchmark's config; `paths` are its root, data and train."""
    (folder / "empty.yml").write_text(EMPTY)
    file = folder / "tiny.yml"
    file.write_text(TINY.format(**{name: json.dumps(str(path)) for name, path in paths.items()}))
    return Tiny(str(file), paths["root"])


class Done(NamedTuple):
    """How a command ended: its exit code, standard output, and the lines of standard error but for warnings."""

    code: int
    out: str
    err: list[str]


def without_warnings(err: str) -> list[str]:
    """The lines of standard error but for warnings (the tiny generator does not know its classes) and bars (if slow)."""
    lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
    return [line for line in lines if not line.startswith("openood-dream: warning: ")]


def write(text: str, name: str = "a.yml") -> str:
    """Writes a file into the current folder, and returns its name."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a trained run."""
    return torch.load(folder / "best.ckpt", weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether weights are the same to the bit."""
    return all(torch.equal(one[name], other[name]) for name in one | other)


def stamps(folder: Path) -> dict[str, int]:
    """When each file below a folder was written last."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
