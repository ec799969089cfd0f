"""The loop around a trainer's epochs: interruptions, checkpoints, scalars, several processes, the same again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from openood_dream.errors import InputError
from openood_dream.experiment import Experiment, load_config
from openood_dream.pipelines.train import train
from openood_dream.trainers import loop
from openood_dream.trainers.known import BaseTrainer

EPOCHS = ["--optimizer.num_epochs", "3"]


@pytest.fixture
def job(tiny, tmp_path) -> Callable[..., Experiment]:
    """The tiny experiment of a method, in a root of its own."""
    return lambda method, *overrides: tiny.method(method, "--root", str(tmp_path / "out"), *overrides)


def weights(folder: Path, name: str = "best.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(next(folder.glob(name)), weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "train.json").read_text())["epochs"]


def interrupt(monkeypatch, experiment: Experiment, at: int) -> None:
    """Trains until the given epoch begins."""
    epoch = BaseTrainer.train_epoch

    def interrupted(self, number):
        if number == at:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BaseTrainer, "train_epoch", interrupted)
        train(experiment)


def epochs_of(monkeypatch, experiment: Experiment) -> tuple[list[int], Path]:
    """Trains; returns which epochs that took, and the folder."""
    trained, epoch = [], BaseTrainer.train_epoch
    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "train_epoch", lambda self, n: trained.append(n) or epoch(self, n))
        return trained, train(experiment)


@pytest.mark.parametrize("method", ["base", "oe"])
def test_interrupted_training_goes_on(job, tmp_path, monkeypatch, method):
    whole = train(job(method, *EPOCHS, "--output_dir", str(tmp_path / "whole")))
    interrupt(monkeypatch, job(method, *EPOCHS), at=3)
    trained, folder = epochs_of(monkeypatch, job(method, *EPOCHS))
    assert trained == [3] and not (folder / loop.TRAINING).exists()
    assert equal(weights(folder), weights(whole)) and equal(weights(folder, "last*"), weights(whole, "last*"))
    assert history(folder) == history(whole) and [row["epoch"] for row in history(folder)] == [1, 2, 3]


def test_killed_process_goes_on(job, tiny, tmp_path):
    """What is on disk when the process dies is enough."""
    where = ["--config", tiny.file, "benchmarks/methods/base.yml", *EPOCHS, "--root", str(tmp_path / "out")]
    code = (
        "import os, sys; from openood_dream import cli; from openood_dream.trainers.known import BaseTrainer as B\n"
        "epoch = B.train_epoch\n"
        "B.train_epoch = lambda self, n: os._exit(9) if n == 2 else epoch(self, n)\n"
        "sys.argv = ['openood-dream', 'train', *sys.argv[1:]]; cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code, *where], capture_output=True).returncode == 9
    assert (tmp_path / "out" / "runs" / "base" / "s0" / loop.TRAINING).exists()
    folder = train(job("base", *EPOCHS))
    assert equal(weights(folder), weights(train(job("base", *EPOCHS, "--output_dir", str(tmp_path / "whole")))))


def test_without_resume(job, monkeypatch):
    interrupt(monkeypatch, job("base", *EPOCHS), at=3)
    trained, _ = epochs_of(monkeypatch, job("base", *EPOCHS, "--resume", "false"))
    assert trained == [1, 2, 3]


def test_another_configuration_leaves_an_unfinished_training_alone(job, monkeypatch):
    interrupt(monkeypatch, job("base", *EPOCHS), at=2)
    with pytest.raises(InputError, match=r"optimizer\.lr: .* holds a run with 0\.1, not 0\.01;"):
        train(job("base", *EPOCHS, "--optimizer.lr", "0.01"))
    trained, _ = epochs_of(monkeypatch, job("base", *EPOCHS))
    assert trained == [2, 3]


def test_damaged_training_checkpoint(job, monkeypatch):
    interrupt(monkeypatch, job("base", *EPOCHS), at=2)
    path = job("base").run.folder / loop.TRAINING
    path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"training\.ckpt: .*delete it"):
        train(job("base", *EPOCHS))


def test_flags_need_no_value(tiny):
    assert tiny.config("--resume", "--compile", "--seed", "2").run.compile
    assert load_config([tiny.file], ["--resume=false"]).run.resume is False


@pytest.mark.parametrize("method", ["base", "oe"])
def test_same_seed_same_weights(job, tmp_path, method):
    runs = [train(job(method, "--output_dir", str(tmp_path / name))) for name in ("one", "other")]
    assert equal(*(weights(run, "last*") for run in runs))


def test_tensorboard(job, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert Path(folder).name == "tensorboard" and purge_step == 1

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def close(self):
            written.append("closed")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(job("base", "--optimizer.num_epochs", "2"))
    names = ["loss", "val_acc", "learning_rate", "terms/cross-entropy"]
    assert written == [(name, epoch) for epoch in (1, 2) for name in names] + ["closed"]


def test_compile(job, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    train(job("base", "--compile", "true"))
    assert compiled == ["TimmNetwork"]


@pytest.mark.parametrize("value", ["0", "-1", "much", "true"])
def test_impossible_clip_norm(job, value):
    with pytest.raises(InputError, match=r"optimizer\.clip_norm: expected a number > 0 or null, got"):
        train(job("base", "--optimizer.clip_norm", value))


def torchrun(count: int, *words: str) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, "-m", "openood_dream", *words], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["base", "vos", "npos"])
def test_torchrun_trains_one_network(tiny, tmp_path, method):
    small = tmp_path / "small.yml"
    args = {"sample_number": 32, "sample_from": 20, "K": 3, "select": 4, "ID_points_num": 5, "start_epoch_KNN": 1}
    trainers = {
        "base": {"name": "base"},
        "vos": {"name": "vos", "sample_number": 32, "start_epoch": 1},
        "npos": {"name": "npos", "trainer_args": args},
    }
    small.write_text(yaml.safe_dump({"trainer": trainers[method], "pipeline": {"name": "train"}}))
    files = ["--config", tiny.file, "benchmarks/methods/base.yml", str(small)]
    done = torchrun(2, "train", *files, "--root", str(tmp_path / "out"), "--optimizer.num_epochs", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "out" / "runs" / method / "s0"
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3] and ("outliers" in rows[-1]["terms"]) == (method != "base")
    assert rows[-1]["terms"].get("cross-entropy", 0) < 1.8  # log 6 is what guessing gives
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())


@pytest.mark.slow
def test_torchrun_imagines_outliers_in_the_main_process(tiny, tmp_path):
    """The others wait for a generator that is trained there alone."""
    layers = tiny.config().benchmark.methods["dream_ood"]
    keys = ["--root", str(tmp_path / "out"), "--dream.generator.steps", "29"]  # a generator that no other test has made
    done = torchrun(2, "train", "--config", tiny.file, *layers, *keys)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "out" / "dream").glob("generator-*")
    assert json.loads((folder / "manifest.json").read_text())["processes"] == 1


@pytest.mark.slow
def test_batch_that_processes_cannot_share(tiny, tmp_path):
    files = ["--config", tiny.file, "benchmarks/methods/base.yml", "--root", str(tmp_path)]
    done = torchrun(2, "train", *files, "--dataset.train.batch_size", "31")
    line = "command line: dataset.train.batch_size: 31 cannot be shared by 2 processes"
    assert done.returncode != 0 and line in done.stderr and not (tmp_path / "runs").exists()
