"""The quickstart as a newcomer runs it, whole: minutes on two cores."""

import json

import pytest

from openood_dream.pipelines.benchmark import benchmark
from openood_dream.reports.runs import collect


@pytest.mark.slow
def test_imagined_outliers_help(tmp_path, command):
    done = command("quickstart", "--out", tmp_path)
    assert done.code == 0 and str(tmp_path / "report.html") in done.out
    rows = {(r["method"], r["postprocessor"]): r for r in json.loads((tmp_path / "leaderboard.json").read_text())}
    assert {method for method, _ in rows} == {"base", "oe", "dream_ood"}
    base, dream = rows["base", "ebo"], rows["dream_ood", "ebo"]
    assert base["seeds"] == dream["seeds"] == 3
    assert dream["near_auroc"] > base["near_auroc"]
    assert dream["id_acc"] > base["id_acc"] - 1
    trained = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("best.ckpt"))
    benchmark(["benchmarks/digits.yml"], ["--root", str(tmp_path)], ["base", "oe", "dream_ood"])
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("best.ckpt")) == trained, "a rerun reuses all"
    assert len(collect([tmp_path])) == 27
