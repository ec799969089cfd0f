"""Who runs a config."""

from __future__ import annotations

import pytest

from openood_dream import run as runner
from openood_dream.errors import InputError
from openood_dream.openood import host
from openood_dream.pipelines import test as scoring
from openood_dream.pipelines import train as training


def test_pipeline_by_name(tiny, tmp_path):
    layers, where = ["benchmarks/methods/base.yml"], ["--root", str(tmp_path)]
    assert runner.run([tiny.file, *layers], where) == tmp_path / "runs" / "base" / "s0"
    assert (tmp_path / "runs" / "base" / "s0" / "best.ckpt").exists()


def test_unknown_pipeline(tiny, tmp_path):
    with pytest.raises(InputError, match=r"command line: pipeline\.name: unknown 'trian'; .*did you mean 'train'\?"):
        runner.run([tiny.file], ["--root", str(tmp_path), "--pipeline.name", "trian"])


def test_benchmark_by_name(tiny, monkeypatch):
    monkeypatch.setattr(runner, "benchmark", lambda *args: args)
    assert runner.run([tiny.file], ["--seed", "1"]) == ([tiny.file], ["--seed", "1"])


def test_backend_decides(tiny, monkeypatch):
    experiment = tiny.method("base")
    ours = lambda experiment: "ours"  # noqa: E731
    monkeypatch.setitem(runner.STANDALONE, "train", ours)
    monkeypatch.setattr(host, "run", lambda experiment: "theirs")
    for wanted, expected in ((False, "ours"), (True, "theirs")):
        monkeypatch.setattr(host, "wanted", lambda experiment, wanted=wanted: wanted)
        assert runner.hosted(experiment, ours) == expected


@pytest.mark.parametrize("standalone, expected", [(training.train, "train or train_oe"), (scoring.test, "test_ood")])
def test_pipeline_must_be_of_the_kind(tiny, monkeypatch, standalone, expected):
    monkeypatch.setattr(host, "wanted", lambda experiment: True)
    with pytest.raises(InputError, match=rf"pipeline\.name: expected {expected}, got 'finetune'"):
        runner.hosted(tiny.config("--pipeline.name", "finetune"), standalone)


@pytest.mark.parametrize(
    "layer, standalone, name",
    [("base", training.train, "train"), ("oe", training.train, "train_oe"), ("base", scoring.test, "test_ood")],
)
def test_part_of_a_benchmark(tiny, monkeypatch, layer, standalone, name):
    """`train` and `test` do their part of a benchmark's config, in OpenOOD as alone."""
    monkeypatch.setattr(host, "wanted", lambda experiment: True)
    monkeypatch.setattr(host, "run", lambda experiment: experiment.pipeline.name)
    experiment = tiny.method(layer).changed({"pipeline.name": "benchmark"})
    assert runner.hosted(experiment, standalone) == name
