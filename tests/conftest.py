"""What many tests share. Session fixtures are made once and must not be changed: a test that writes takes tmp_path."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # tests never reach for the network
os.environ["TQDM_DISABLE"] = "1"

from openood_dream import cli, store  # noqa: E402
from openood_dream.config import Config, load_config  # noqa: E402

# The digits chain with networks and step counts so small that all of it runs in seconds. It lies over the shipped
# configs of data and training, but takes no network and no imagination from them: those are tuned for quality.
EMPTY = "{dream: {}, network: {}}"
TINY = """
include: [datasets/digits/digits.yml, datasets/digits/digits_ood.yml, pipelines/train/base.yml, empty.yml]
root: {root}
data_root: {data}
output_dir: '@{{root}}'
exp_name: "runs/'@{{method}}'/s'@{{seed}}'"
method: base
num_workers: 0
num_gpus: 0
backend: standalone
device: cpu
precision: float32
pipeline: {{name: benchmark}}
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


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Path:
    """The user's cache folder while tests run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The data root of the digits benchmark."""
    from openood_dream import data

    root = tmp_path_factory.mktemp("digits")
    data.make_digits(root)
    return root


class Tiny(NamedTuple):
    """The tiny benchmark: its config file and the root under which the shared chain keeps its artifacts."""

    file: str
    root: Path

    def config(self, *overrides: str, layers: list[str] = []) -> Config:  # noqa: B006
        return load_config([self.file, *layers], overrides)

    def method(self, name: str, *overrides: str) -> Config:
        layers = self.config().benchmark.methods[name]
        return self.config("--method", name, *overrides, layers=layers)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, digits) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    rows = store.read_imglist(digits / "benchmark_imglist" / "digits" / "train.txt")
    store.write_imglist(folder / "train.txt", rows[::2])
    paths = {"root": folder / "out", "data": digits, "train": folder / "train.txt"}
    file = folder / "tiny.yml"
    (folder / "empty.yml").write_text(EMPTY)
    file.write_text(TINY.format(**{name: json.dumps(str(path)) for name, path in paths.items()}))
    return Tiny(str(file), folder / "out")


@pytest.fixture(scope="session")
def chain(tiny) -> SimpleNamespace:
    """Every stage of the tiny chain, run once: the config, and an artifact (the generator's Source) per stage."""
    from openood_dream import anchors, generator, imagine, outliers, space

    config = tiny.config()
    images = imagine.run(config)
    return SimpleNamespace(
        config=config,
        anchors=anchors.run(config),
        space=space.run(config),
        generator=generator.run(config),
        outliers=outliers.run(config),
        images=images,
    )


@pytest.fixture(scope="session")
def names() -> list[str]:
    """The class names that the pipeline of random weights knows."""
    return ["cat", "aquarium fish", "dog"]


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory, names) -> Path:
    """A saved Stable Diffusion 1 pipeline of random weights: 16x16 images, 4x4 latents."""
    import families

    return families.save(tmp_path_factory.mktemp("pipeline"), "sd1", names)


class Done(NamedTuple):
    """How a command ended: its exit code, standard output, and the lines of standard error."""

    code: int
    out: str
    err: list[str]


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., Done]:
    """Runs the openood-dream command in this process, so that torch is imported once for all tests."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["openood-dream", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Done(ended.value.code or 0, out, err.splitlines())

    return run


@pytest.fixture(scope="session")
def benchmarked(tiny, chain, tmp_path_factory) -> SimpleNamespace:
    """A finished benchmark of three methods, two seeds and three postprocessors, and the overrides that made it."""
    from openood_dream import pipelines

    root = tmp_path_factory.mktemp("benchmark") / "out"
    overrides = ["--root", str(root), "--dream.cache_dir", str(tiny.root / "dream")]
    report = pipelines.benchmark([tiny.file], overrides)
    return SimpleNamespace(root=root, report=report, overrides=overrides)
