"""The loop around a trainer's epochs: interruptions, checkpoints, scalars, several processes, the same again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from openood_dream import pipelines
from openood_dream.config import InputError, load_config, settings
from openood_dream.trainers import BaseTrainer, loop

EPOCHS = ["--optimizer.num_epochs", "3"]


@pytest.fixture
def job(tiny, tmp_path):
    """The tiny config of a method, in a root of its own."""

    def config(method: str, *overrides: str):
        return tiny.method(method, "--root", str(tmp_path / "out"), *overrides)

    return config


def weights(folder: Path, name: str = "best.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(next(folder.glob(name)), weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def interrupt(monkeypatch, config, at: int) -> None:
    """Trains until the given epoch begins."""
    epoch = BaseTrainer.train_epoch

    def interrupted(self, number):
        if number == at:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BaseTrainer, "train_epoch", interrupted)
        pipelines.train(config)


@pytest.mark.parametrize("method", ["base", "oe"])
def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(job, tmp_path, monkeypatch, method):
    whole = pipelines.train(job(method, *EPOCHS, "--output_dir", str(tmp_path / "whole")))
    interrupt(monkeypatch, job(method, *EPOCHS), at=3)
    trained = []
    epoch = BaseTrainer.train_epoch
    monkeypatch.setattr(BaseTrainer, "train_epoch", lambda self, n: trained.append(n) or epoch(self, n))
    folder = pipelines.train(job(method, *EPOCHS))
    assert trained == [3] and not (folder / loop.TRAINING).exists()
    assert equal(weights(folder), weights(whole)) and equal(weights(folder, "last*"), weights(whole, "last*"))
    history = [json.loads((path / "train.json").read_text())["epochs"] for path in (folder, whole)]
    assert history[0] == history[1] and [row["epoch"] for row in history[0]] == [1, 2, 3]


def test_a_killed_process_goes_on_too(job, tiny, tmp_path):
    """What is on disk when the process dies is enough."""
    where = ["--config", tiny.file, "benchmarks/methods/base.yml", *EPOCHS, "--root", str(tmp_path / "out")]
    code = (
        "import os, sys; from openood_dream import cli; from openood_dream.trainers import BaseTrainer as B\n"
        "epoch = B.train_epoch\n"
        "B.train_epoch = lambda self, n: os._exit(9) if n == 2 else epoch(self, n)\n"
        "sys.argv = ['openood-dream', 'train', *sys.argv[1:]]; cli.main()"
    )
    assert subprocess.run([sys.executable, "-c", code, *where], capture_output=True).returncode == 9
    assert (tmp_path / "out" / "runs" / "base" / "s0" / loop.TRAINING).exists()
    folder = pipelines.train(job("base", *EPOCHS))
    assert equal(
        weights(folder), weights(pipelines.train(job("base", *EPOCHS, "--output_dir", str(tmp_path / "whole"))))
    )


def test_without_resume_training_starts_again(job, monkeypatch):
    interrupt(monkeypatch, job("base", *EPOCHS), at=3)
    trained = []
    epoch = BaseTrainer.train_epoch
    monkeypatch.setattr(BaseTrainer, "train_epoch", lambda self, n: trained.append(n) or epoch(self, n))
    pipelines.train(job("base", *EPOCHS, "--resume", "false"))
    assert trained == [1, 2, 3]


def test_another_configuration_does_not_go_on_from_it(job, monkeypatch):
    interrupt(monkeypatch, job("base", *EPOCHS), at=2)
    folder = pipelines.train(job("base", *EPOCHS, "--optimizer.lr", "0.01", "--merge_option", "merge"))
    assert len(json.loads((folder / "train.json").read_text())["epochs"]) == 3


def test_a_damaged_training_checkpoint_is_named(job, monkeypatch):
    interrupt(monkeypatch, job("base", *EPOCHS), at=2)
    path = Path(job("base").output_dir) / loop.TRAINING
    path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"training\.ckpt: not a readable checkpoint .*delete it to start again"):
        pipelines.train(job("base", *EPOCHS))


def test_resume_needs_no_value_on_the_command_line(tiny):
    assert settings(tiny.config("--resume", "--compile", "--seed", "2"), "").compile
    assert load_config([tiny.file], ["--resume=false"]).resume is False


@pytest.mark.parametrize("method", ["base", "oe"])
def test_two_runs_of_a_seed_have_equal_weights(job, tmp_path, method):
    runs = [pipelines.train(job(method, "--output_dir", str(tmp_path / name))) for name in ("one", "other")]
    assert equal(*(weights(run, "last*") for run in runs))


def test_scalars_go_to_tensorboard_where_it_is_installed(job, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert Path(folder).name == "tensorboard"

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def close(self):
            written.append("closed")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    pipelines.train(job("base", "--optimizer.num_epochs", "2"))
    names = ["loss", "val_acc", "learning_rate", "terms/cross-entropy"]
    assert written == [(name, epoch) for epoch in (1, 2) for name in names] + ["closed"]


def test_the_network_is_compiled_where_the_config_says_so(job, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    pipelines.train(job("base", "--compile", "true"))
    assert compiled == ["TimmNetwork"]


@pytest.mark.parametrize("value", ["0", "-1", "much", "true"])
def test_a_clip_norm_that_is_none_is_named(job, value):
    with pytest.raises(InputError, match=r"optimizer\.clip_norm: expected a number > 0 or null, got"):
        pipelines.train(job("base", "--optimizer.clip_norm", value))


def torchrun(count: int, *words: str) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, "-m", "openood_dream.cli", *words], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["base", "vos", "npos"])
def test_processes_of_torchrun_train_one_network_together(tiny, tmp_path, method):
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
    folder = tmp_path / "out" / "runs" / "base" / "s0"
    history = json.loads((folder / "train.json").read_text())["epochs"]
    assert [row["epoch"] for row in history] == [1, 2, 3] and ("outliers" in history[-1]["terms"]) == (method != "base")
    assert history[-1]["terms"].get("cross-entropy", 0) < 1.8  # log 6 is what guessing gives
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_named(tiny, tmp_path):
    files = ["--config", tiny.file, "benchmarks/methods/base.yml", "--root", str(tmp_path)]
    done = torchrun(2, "train", *files, "--dataset.train.batch_size", "31")
    assert done.returncode != 0 and "31 cannot be shared by 2 processes" in done.stderr
