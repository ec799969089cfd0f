"""What twelve postprocessors cost: `make bench`, or `pytest benchmarks/bench_evaluate.py`.

A ResNet-18 after three epochs on the digits benchmark at 32x32: 3,477 images to pass. Everything starts without
a pass on disk, and the scoring of `openood-dream benchmark` is what is timed. Where OpenOOD is not installed, our own evaluation
without shared passes stands for it.
"""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from openood_dream.datasets.digits import make_digits
from openood_dream.evaluators.evaluate import evaluate
from openood_dream.evaluators.metrics import compute_metrics
from openood_dream.evaluators.passes import Passes, forward_pass
from openood_dream.experiment import Experiment, load_config
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import get_network
from openood_dream.openood import cache, compat, host
from openood_dream.pipelines.test import score_run
from openood_dream.pipelines.test import test as score
from openood_dream.pipelines.train import train
from openood_dream.store.files import write_json

NAMES = "msp mls ebo gen knn vim mds rmds she react ash dice".split()
CPU = torch.device("cpu")
FILES = ["datasets/digits/digits.yml", "datasets/digits/digits_ood.yml", "networks/timm_resnet18.yml"]


class Job:
    """The configs of twelve evaluations of one checkpoint, each time under a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        make_digits(root / "data")
        training = self.config("train", root, "pipelines/train/base.yml")
        training = training.changed({"optimizer.num_epochs": 3, "optimizer.lr": 0.05})
        (root / "best.ckpt").write_bytes((train(training) / "best.ckpt").read_bytes())

    def config(self, name: str, folder: Path, *files: str) -> Experiment:
        keys = {"data_root": self.root / "data", "output_dir": folder, "exp_name": name, "device": "cpu", "num_gpus": 0}
        keys |= {"num_workers": 0, "dataset.image_size": 32, "dataset.pre_size": 32, "merge_option": "merge"}
        keys |= {"network.checkpoint": folder / "best.ckpt"} if (folder / "best.ckpt").exists() else {}
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        if name == "vim":
            words += ["--postprocessor.postprocessor_args.dim", "64"]
        return load_config([*FILES, *(files or ("pipelines/test/test_ood.yml", f"postprocessors/{name}.yml"))], words)

    def fresh(self) -> Path:
        """A folder with the checkpoint and without passes."""
        self.count += 1
        folder = self.root / str(self.count)
        folder.mkdir()
        (folder / "best.ckpt").write_bytes((self.root / "best.ckpt").read_bytes())
        write_json(folder / "train.json", {"hash": "trained elsewhere"})
        return folder


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    return Job(tmp_path_factory.mktemp("evaluate"))


def by_us(job: Job) -> Path:
    folder = job.fresh()
    experiments = [job.config(name, folder) for name in NAMES]
    score_run(folder, experiments, experiments[0].data)
    return folder


def by_openood(job: Job) -> Path:
    folder = job.fresh()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for name in NAMES:
            host.run(job.config(name, folder))
    return folder


def without_cache(job: Job) -> Path:
    if compat.installed("openood"):
        with mock.patch.object(cache, "SERVED", frozenset()):
            return by_openood(job)
    folder = job.fresh()
    for name in NAMES:
        experiment = job.config(name, folder)
        net = network(experiment, folder)
        passes = Passes(net, experiment.data, CPU, network={"name": experiment.network.name})
        evaluate(passes, experiment.postprocessor, folder / name, config=experiment.to_dict())
    return folder


def network(experiment: Experiment, folder: Path) -> nn.Module:
    """The trained network."""
    net = get_network(experiment.network.model_copy(update={"pretrained": False}), image_size=32)
    load_weights(net, folder / "best.ckpt")
    return net


def one_pass(job: Job) -> None:
    """Every image through the network once: those that detectors are fitted to, and those that are scored."""
    folder = job.fresh()
    experiment = job.config("msp", folder)
    net, data = network(experiment, folder), experiment.data
    csid = [("csid", name) for name in data.csid_sets()]
    sets = [("dataset", split) for split in ("train", "val", "test")]
    for which in [*sets, *(("ood_dataset", *names) for names in [*data.ood_sets(), *csid])]:
        forward_pass(net, data.loader(*which), CPU)


@pytest.fixture(scope="module")
def uncached(job) -> tuple[Path, dict[str, Any]]:
    """The results of the evaluation without a cache, and what a comparison with it says of it."""
    start = time.perf_counter()
    folder = without_cache(job)
    who = "OpenOOD's evaluation" if compat.installed("openood") else "our evaluation without shared passes"
    return folder, {"reference": f"{who}, 12 times", "reference_seconds": time.perf_counter() - start}


def same_numbers(one: Path, other: Path) -> None:
    for name in NAMES:
        ours, expected = (pd.read_csv(folder / name / "ood.csv", index_col="dataset") for folder in (one, other))
        pd.testing.assert_frame_equal(ours, expected, rtol=0, atol=0.0101)


def test_12_postprocessors_cost_little_more_than_a_pass(against, job):
    against(lambda: by_us(job), lambda: one_pass(job), "one pass", wanted=1 / 1.5, rounds=3, reference_rounds=3)


def test_12_postprocessors_standalone(benchmark, job, uncached):
    folder = benchmark.pedantic(by_us, (job,), rounds=1)
    same_numbers(folder, uncached[0])
    record(benchmark, uncached[1])


@pytest.mark.skipif(not compat.installed("openood"), reason="OpenOOD is not installed")
def test_12_postprocessors_of_openood_from_the_cache(benchmark, job, uncached):
    folder = benchmark.pedantic(by_openood, (job,), rounds=1)
    same_numbers(folder, uncached[0])
    record(benchmark, uncached[1])


def record(benchmark, reference: dict[str, Any]) -> None:
    if benchmark.stats is not None:
        ratio = reference["reference_seconds"] / benchmark.stats.stats.min
        benchmark.extra_info |= {**reference, "ratio": ratio, "wanted": 5}


def test_reading_passes_again(against, job):
    """What a rerun costs: twelve postprocessors with every pass on disk."""
    folder = by_us(job)

    def rerun() -> None:
        for name in NAMES:
            score(job.config(name, folder))

    against(rerun, lambda: by_us(job), "the first run", rounds=3, reference_rounds=1, warmup=False)


def test_metrics(benchmark):
    """METRICS of 10,000 ID and 10,000 OOD images."""
    rng = np.random.default_rng(0)
    conf = np.concatenate([rng.normal(1, 1, 10_000), rng.normal(0, 1, 10_000)])
    label = np.repeat([0, -1], 10_000)
    benchmark(compute_metrics, conf, label, np.zeros(20_000, int))
    benchmark.extra_info["images"] = 20_000
