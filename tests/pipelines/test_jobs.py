"""Jobs of a benchmark: here, in processes of their own and on Ray; and what failing ones leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import equal, stamps, weights

from openood_dream.experiment import load_config
from openood_dream.pipelines import jobs
from openood_dream.pipelines.benchmark import JobsFailed, benchmark


def same_run(one: Path, other: Path, seed: int) -> None:
    runs = [root / "runs" / "base" / f"s{seed}" for root in (one, other)]
    assert equal(*map(weights, runs))
    assert len({(run / "msp" / "ood.csv").read_text() for run in runs}) == 1


def test_a_job_alone(benchmarked, tiny, tmp_path):
    words = ["--root", str(tmp_path), *benchmarked.overrides[2:], "--method", "base", "--seed", "1"]
    folder = jobs.job([tiny.file, "benchmarks/methods/base.yml"], words)
    assert folder == tmp_path / "runs" / "base" / "s1"
    assert equal(weights(folder), weights(benchmarked.root / "runs" / "base" / "s1"))


@pytest.mark.slow
@pytest.mark.parametrize(("words", "search"), [([], False), (["--postprocessor.APS_mode", "true"], True)])
def test_the_benchmark_says_whether_detectors_search(words, search):
    _, scored = jobs.job_experiments(["benchmarks/digits.yml", "benchmarks/methods/base.yml"], words)
    assert [one.postprocessor.APS_mode for one in scored] == [search] * 3
    assert load_config(["postprocessors/knn.yml"]).postprocessor.APS_mode  # as in OpenOOD's own file


def test_two_at_a_time_of_which_one_fails(benchmarked, tiny, tmp_path):
    blocked = tmp_path / "runs" / "base"
    blocked.mkdir(parents=True)
    (blocked / "s1").write_text("in the way")
    overrides = ["--root", str(tmp_path), *benchmarked.overrides[2:], "--benchmark.postprocessors", "[msp]"]
    with pytest.raises(JobsFailed, match="1 of 2 jobs failed: base seed 1"):
        benchmark([tiny.file], overrides, ["base"], workers=2)
    same_run(benchmarked.root, tmp_path, 0)
    assert [path.name for path in (tmp_path / "logs").glob("*.failed")] == ["base-s1.failed"]
    (row,) = json.loads((tmp_path / "leaderboard.json").read_text())
    assert row["seeds"] == 1 and f"seed 1 failed: {blocked / 's1'}: cannot write here" in row["notes"]


def test_a_worker_does_one_job_after_the_other(tmp_path):
    """Of which each has a log of its own; one that cannot be read ends with bad input, and the next is done."""
    worker, processes = jobs.Worker(), []
    for name in "ab":
        worker((["--config", f"{name}.yml"], str(tmp_path / f"{name}.log")))
        processes.append(worker.process)
        assert f"{name}.yml" in (tmp_path / f"{name}.log").read_text()
        assert (tmp_path / f"{name}.failed").read_text() == "2\n"
    assert processes[0] is processes[1]
    worker.process.kill()
    worker.process.wait()
    worker((["--config", "c.yml"], str(tmp_path / "c.log")))
    assert worker.process is not processes[0] and (tmp_path / "c.failed").read_text() == "2\n"
    worker.start.close()
    assert worker.process.returncode == 0


def test_no_worker_waits_for_another_that_imagines(tiny):
    names = ("base", "dream_ood", "oe")
    some = [jobs.Job(name, seed, [], Path("x.log"), tiny.method(name), []) for seed in (0, 1) for name in names]
    found = [(one.method, one.seed) for one in jobs.in_order(some)]
    assert found[0] == ("dream_ood", 0) and found[-1] == ("dream_ood", 1)
    assert sorted(found) == sorted((one.method, one.seed) for one in some)


@pytest.mark.slow
def test_on_ray(benchmarked, tiny, tmp_path):
    pytest.importorskip("ray")
    overrides = ["--root", str(tmp_path), *benchmarked.overrides[2:]]
    benchmark([tiny.file], overrides, ["base"], executor="ray")
    for seed in (0, 1):
        same_run(benchmarked.root, tmp_path, seed)


def failing(monkeypatch, method: str, seed: int) -> None:
    """Makes the training of one job fail."""
    train = jobs.train

    def partly(experiment):
        if (experiment.method, experiment.run.seed) == (method, seed):
            raise RuntimeError("the card is <on> fire")
        return train(experiment)

    monkeypatch.setattr(jobs, "train", partly)


def test_others_go_on_and_a_rerun_continues(tiny, tmp_path, monkeypatch):
    files, overrides = [tiny.file], ["--root", str(tmp_path), "--benchmark.postprocessors", "[msp]"]
    with monkeypatch.context() as patch:
        failing(patch, "base", 1)
        with pytest.raises(JobsFailed, match=r"1 of 2 jobs failed: base seed 1 \(.*base-s1\.log\)") as error:
            benchmark(files, overrides, ["base"])
    (row,) = json.loads((tmp_path / "leaderboard.json").read_text())
    assert row["seeds"] == 1 and "RuntimeError: the card is <on> fire" in row["notes"]
    page = error.value.report.read_text()
    assert "the card is &lt;on&gt; fire" in page and "<on>" not in page
    before = stamps(tmp_path / "runs" / "base" / "s0")
    assert benchmark(files, overrides, ["base"]) == error.value.report
    assert json.loads((tmp_path / "leaderboard.json").read_text())[0]["seeds"] == 2
    assert stamps(tmp_path / "runs" / "base" / "s0") == before


def test_no_report_where_all_fail(tiny, tmp_path, monkeypatch):
    failing(monkeypatch, "base", 0)
    with pytest.raises(JobsFailed, match="all 1 jobs failed: base seed 0") as error:
        benchmark([tiny.file], ["--root", str(tmp_path)], ["base"], 1)
    assert error.value.report is None and not (tmp_path / "report.html").exists()
