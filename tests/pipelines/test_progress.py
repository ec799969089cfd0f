"""What a person sees of a long command."""

from __future__ import annotations

from pathlib import Path

import pytest

from openood_dream.pipelines import progress, stages
from openood_dream.pipelines.progress import Progress, job_stages
from openood_dream.store.artifacts import build
from openood_dream.store.steps import Step, tell


@pytest.fixture(autouse=True)
def bars(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")


def test_stages_are_numbered_and_the_reused_have_no_time(tmp_path, capsys):
    def job() -> None:
        for stage in ("anchors", "text", "space"):
            build(tmp_path, stage, {}, lambda folder: None)

    for _ in range(2):
        with Progress().of(["anchors", "space", "train"], "job 1 of 1"):
            job()
    lines = capsys.readouterr().err.splitlines()
    paths = [build(tmp_path, stage, {}, lambda folder: None).path for stage in ("anchors", "space")]
    first, second = lines[: len(lines) - 3], lines[-3:]
    assert first[:2] == ["job 1 of 1", "stage 1 of 3: anchors"] and first[3] == "stage 2 of 3: space"
    assert first[2].startswith("stage 1 of 3: anchors done in ") and first[2].endswith(f" s: {paths[0]}")
    assert second[1:] == [f"stage {n + 1} of 3: {path.name[:-9]} reused: {path}" for n, path in enumerate(paths)]


def test_what_jobs_share_is_said_once(capsys):
    shared = Progress()
    for seed in (0, 1):
        with shared.of(["space", "train"]):
            tell(Step("space", Path("space-1")))
            tell(Step("train", Path(f"s{seed}"), 1.25))
    assert capsys.readouterr().err.splitlines() == [
        "stage 1 of 2: space reused: space-1",
        "stage 2 of 2: train done in 1.2 s: s0",
        "stage 2 of 2: train done in 1.2 s: s1",
    ]


def test_quiet(monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with Progress().of(["train"], "job 1 of 1"):
        tell(Step("train"))
    assert capsys.readouterr().err == ""


def test_stages_of_a_job(tiny):
    assert job_stages(tiny.config("--method", "base", layers=["benchmarks/methods/base.yml"])) == ["train", "score"]
    layers = ["pipelines/train/dream_ood.yml", "preprocessors/dream.yml"]
    every = [*(name for name in progress.STAGES if name != "inversion"), "train", "score"]
    keys = ["--dream.filter.distance", "0.5"]
    assert job_stages(tiny.config(*keys, layers=layers)) == every and len(every) == 8
    plain = ["--dream.filter.distance", "null", "--dream.generator", "a/pipeline"]
    assert job_stages(tiny.config(*plain, layers=layers)) == [
        name for name in every if name not in ("generator", "quality")
    ]
    inverted = job_stages(tiny.config(*keys, "--dream.space.method", "inversion", layers=layers))
    assert inverted == ["anchors", "space", "generator", "inversion", "outliers", "images", "quality", "train", "score"]
    given = job_stages(tiny.config(*plain, "--dream.space.method", "inversion", layers=layers))
    assert given == ["anchors", "space", "inversion", "outliers", "images", "train", "score"]


def test_a_stage_says_where_it_stands(tiny, dream, capsys):
    artifact = stages.stage("space", [tiny.file])
    assert f"stage 2 of 2: space reused: {artifact.path}" in capsys.readouterr().err.splitlines()
