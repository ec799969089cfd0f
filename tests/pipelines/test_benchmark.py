"""A benchmark: what is trained and scored, what is reused, and what is refused before anything is computed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers import equal, stamps, weights

from openood_dream.config.files import shipped_configs
from openood_dream.dream.imaginer import Imaginer
from openood_dream.errors import InputError, InputWarning
from openood_dream.evaluators import passes
from openood_dream.experiment import load_config
from openood_dream.pipelines import jobs
from openood_dream.pipelines.benchmark import Plan, benchmark
from openood_dream.pipelines.claim import Claim
from openood_dream.reports import report
from openood_dream.trainers.known import BaseTrainer


def scored(root) -> set[str]:
    """The folders of scores below a root."""
    return {path.parent.relative_to(root / "runs").as_posix() for path in (root / "runs").rglob("ood.csv")}


def test_all_methods_seeds_and_detectors(benchmarked):
    assert scored(benchmarked.root) == {
        f"{method}/s{seed}/{name}"
        for method in ("base", "oe", "dream_ood")
        for seed in (0, 1)
        for name in ("msp", "ebo", "knn")
    }
    assert benchmarked.report == benchmarked.root / "report.html" and benchmarked.report.exists()


@pytest.mark.slow
def test_detectors_of_a_method(benchmarked, tiny, tmp_path):
    (tmp_path / "own.yml").write_text("benchmark: {postprocessors: [mls]}")
    (tmp_path / "both.yml").write_text(
        f"benchmark:\n  methods:\n    own: [benchmarks/methods/base.yml, {json.dumps(str(tmp_path / 'own.yml'))}]"
    )
    root = tmp_path / "out"
    files, overrides = [tiny.file, str(tmp_path / "both.yml")], ["--root", str(root), *benchmarked.overrides[2:]]
    report = benchmark(files, overrides, methods=["base", "own"], seeds=1)
    assert scored(root) == {"own/s0/mls", *(f"base/s0/{name}" for name in ("msp", "ebo", "knn"))}
    assert "own: mls confidence" not in report.read_text() and 'alt="score_histograms: ' in report.read_text()


def test_second_run_computes_nothing(benchmarked, tiny, monkeypatch):
    monkeypatch.setattr(BaseTrainer, "train_epoch", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(passes, "forward_pass", lambda *args: pytest.fail("scored again"))
    monkeypatch.setattr(Imaginer, "__call__", lambda *args: pytest.fail("drew again"))
    assert benchmark([tiny.file], benchmarked.overrides) == benchmarked.report


def test_only_what_is_missing(benchmarked, tiny, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(benchmarked.root, root)
    shutil.rmtree(root / "runs" / "oe" / "s1")
    (root / "runs" / "base" / "s0" / "ebo" / "evaluate.json").unlink()
    before = stamps(root)
    overrides = ["--root", str(root), *benchmarked.overrides[2:]]
    benchmark([tiny.file], overrides, methods=["base", "oe"])
    after = stamps(root / "runs")
    changed = {name for name, stamp in after.items() if before.get(f"runs/{name}") != stamp}
    assert {name.split("/")[0:2] == ["oe", "s1"] or name.startswith("base/s0/ebo/") for name in changed} == {True}
    again = (root / "runs" / "oe" / "s1" / "ebo" / "ood.csv").read_text()
    assert again == (benchmarked.root / "runs" / "oe" / "s1" / "ebo" / "ood.csv").read_text()


@pytest.fixture
def copied(benchmarked, tiny, tmp_path):
    """A copy of the benchmark's root, and the words that name it."""
    shutil.copytree(benchmarked.root, tmp_path / "out")
    return tmp_path / "out", ["--root", str(tmp_path / "out"), "--dream.cache_dir", str(tiny.root / "dream")]


@pytest.mark.parametrize(
    "words, key",
    [(["--dream.outliers.sigma", "0.3"], "dream.outliers.sigma"), (["--optimizer.lr", "0.05"], "optimizer.lr")],
)
def test_root_of_another_benchmark_stays_as_it_is(command, tiny, copied, words, key):
    root, where = copied
    before = stamps(root)
    asked = ["--methods", "base,dream_ood", "--seeds", "1", *words]
    done = command("benchmark", "--config", tiny.file, *asked, *where, "--merge_option", "merge")
    assert (done.code, done.out, len(done.err)) == (2, "", 1)
    assert f"command line: {key}: {root} holds a benchmark with 0.1" in done.err[0] and "--root" in done.err[0]
    assert stamps(root) == before


def test_run_of_another_configuration_in_an_unclaimed_root(tiny, copied):
    root, where = copied
    (root / "benchmark.json").unlink()
    before = stamps(root)
    with pytest.raises(
        InputError, match=rf"command line: optimizer\.lr: {root}/runs/base/s0 holds a run with 0\.1, not 0\.05"
    ):
        benchmark([tiny.file], [*where, "--optimizer.lr", "0.05"], ["base"], 1)
    assert stamps(root) == before


def test_fewer_methods_lose_no_row(tiny, copied):
    root, where = copied
    before = (root / "leaderboard.csv").read_text()
    benchmark([tiny.file], where, ["base"], 1)
    assert (root / "leaderboard.csv").read_text() == before


def test_other_runs_below_the_root_are_named_in_one_line(tiny, copied):
    root, where = copied
    shutil.copytree(root / "runs" / "base", root / "runs" / "mine")
    with pytest.warns(InputWarning) as warned:
        page = benchmark([tiny.file], where, ["base"], 1)
    (line,) = [str(one.message) for one in warned if "mine" in str(one.message)]
    assert "runs/mine/s0" in line and "runs/mine/s1" in line and line in page.read_text()
    assert "mine" not in (root / "leaderboard.csv").read_text()


@pytest.fixture
def reported(monkeypatch):
    """What a benchmark gives to its report, which is not drawn: the runs that it covers, and remarks."""
    found = SimpleNamespace()

    def write(root, folders, experiments, seconds, commands, failures, remarks):
        found.runs, found.remarks = {folder.relative_to(root / "runs").as_posix() for folder in folders}, remarks
        return root / "report.html"

    monkeypatch.setattr(report, "write", write)
    return found


def test_runs_of_a_job_alone_are_in_the_report(tiny, copied, reported):
    root, where = copied
    (root / "benchmark.json").unlink()
    benchmark([tiny.file], where, ["base"], 1)
    assert reported.runs == {f"{method}/s{seed}" for method in ("base", "oe", "dream_ood") for seed in (0, 1)}


def test_a_run_of_other_settings_is_named_and_not_averaged(tiny, copied, reported):
    root, where = copied
    record = root / "runs" / "oe" / "s1" / "train.json"
    record.write_text(record.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.warns(InputWarning, match=r"oe, seed 1, is not in the report: .*optimizer\.lr: .* with 0\.2, not 0\.1"):
        benchmark([tiny.file], where, ["base"], 1)
    assert "oe/s0" in reported.runs and "oe/s1" not in reported.runs
    assert len(reported.remarks) == 1 and "oe, seed 1, is not in the report" in reported.remarks[0]


def test_the_remedy_for_a_claimed_root_reuses_what_was_imagined(tiny, copied, tmp_path, reported):
    _, where = copied
    words = [*where, "--benchmark.postprocessors", "[msp]", "--dream.outliers.sigma", "0.3"]
    with pytest.raises(InputError, match="holds a benchmark with") as refused:
        benchmark([tiny.file], words, ["dream_ood"], 1)
    cache = Path(re.search(r"--dream\.cache_dir (\S+) ", str(refused.value))[1])
    made = {stage: set(cache.glob(f"{stage}-*")) for stage in ("anchors", "space", "generator", "outliers")}
    benchmark([tiny.file], [*words, "--root", str(tmp_path / "new"), "--dream.cache_dir", str(cache)], ["dream_ood"], 1)
    assert scored(tmp_path / "new") == {"dream_ood/s0/msp"}
    assert {stage for stage, old in made.items() if set(cache.glob(f"{stage}-*")) != old} == {"outliers"}


def test_a_root_is_the_same_however_it_is_spelt(tiny, tmp_path, monkeypatch):
    words = ["--dataset.val.imglist_pth", "'@{root}'/val.txt", "--dream.generator", "CompVis/stable-diffusion-v1-4"]
    monkeypatch.chdir(tmp_path)
    Claim(Path("out"), tiny.config(*words, "--root", "out")).add([])
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "out").rename(tmp_path / "moved")
    Claim(tmp_path / "moved", tiny.config(*words, "--root", str(tmp_path / "moved"))).check()
    other = tiny.config("--root", str(tmp_path / "moved"), *words[2:])
    with pytest.raises(InputError, match=r"dataset\.val\.imglist_pth: .* holds a benchmark with 'val\.txt'"):
        Claim(tmp_path / "moved", other).check()


@pytest.mark.parametrize("text", ["[1]", "{", '{"config": [], "runs": []}', '{"config": {}, "runs": [1]}'])
def test_a_damaged_claim_is_named(tiny, copied, text):
    root, where = copied
    (root / "benchmark.json").write_text(text)
    before = stamps(root)
    with pytest.raises(InputError, match=rf"^{root}/benchmark\.json: .*; delete it") as error:
        benchmark([tiny.file], where, ["base"], 1)
    assert "\n" not in str(error.value) and stamps(root) == before


def test_two_benchmarks_of_different_configs_in_one_root(tiny, tmp_path, monkeypatch):
    """The second one comes while the first one trains."""
    where, refused = ["--root", str(tmp_path), "--benchmark.postprocessors", "[msp]"], []
    train = jobs.train

    def meanwhile(experiment):
        with pytest.raises(InputError, match=r"optimizer\.lr: .* holds a benchmark with 0\.1, not 0\.001") as error:
            benchmark([tiny.file], [*where, "--optimizer.lr", "0.001"], ["base"], 1)
        refused.append(error)
        return train(experiment)

    monkeypatch.setattr(jobs, "train", meanwhile)
    benchmark([tiny.file], where, ["base"], 1)
    assert len(refused) == 1


def test_a_job_that_is_refused_gives_its_reason(tiny, tmp_path, monkeypatch):
    def refuse(experiment):
        raise InputError("tiny.yml: dream.filter: drops everything")

    monkeypatch.setattr(jobs, "train", refuse)
    with pytest.raises(InputError, match="^tiny.yml: dream.filter: drops everything$"):
        benchmark([tiny.file], ["--root", str(tmp_path)], ["base"], 1)


@pytest.mark.parametrize("label", ["0.07", "on", "a #b", "wide: x2"])
def test_labels_with_signs_of_yaml(tiny, label):
    methods = json.dumps({label: ["benchmarks/methods/base.yml"]})
    words = ["--benchmark.methods", methods]
    (job, *_) = Plan([tiny.file], words, tiny.config(*words)).chosen([label], 1)
    assert job.experiment.method == label and job.experiment.run.folder.parts[-2:] == (label, "s0")


def test_a_training_alone_of_a_benchmarks_config_is_called_by_its_own_name():
    layers = ["benchmarks/digits.yml", "pipelines/train/dream_ood.yml", "preprocessors/dream.yml"]
    experiment = load_config(layers, ["--seed", "0"])
    assert experiment.method == "dream_ood" and experiment.run.folder == Path("results/digits/runs/dream_ood/s0")


SHIPPED = [path for path in sorted((shipped_configs() / "benchmarks").rglob("*.yml")) if "methods:" in path.read_text()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_config_gives_a_method_the_label_of_another(path):
    for label, layers in load_config([str(path)]).benchmark.methods.items():
        experiment = load_config([str(path), *layers])
        assert experiment.method in (experiment.trainer.name, label, "bood")  # which is DREAM-OOD with other outliers
        assert experiment.run.folder.parts[-2:] == (experiment.method, "s0")


def test_methods_end_in_different_weights(benchmarked):
    finals = [weights(benchmarked.root / "runs" / method / "s0") for method in ("base", "oe", "dream_ood")]
    assert not equal(finals[0], finals[1]) and not equal(finals[0], finals[2]) and not equal(finals[1], finals[2])


@pytest.mark.parametrize(
    "methods, seeds, overrides, message",
    [
        (["bas"], None, [], r"--methods: unknown 'bas'; did you mean 'base'\? known are base, dream_ood, oe"),
        ([], None, [], r"--methods: expected some of"),
        (None, 3, [], r"--seeds: expected 1 to 2 \(benchmark\.seeds\), got 3"),
        (None, None, ["--benchmark.postprocessors", "[ebo, knnn]"], r"postprocessors/knnn\.yml: no such file"),
        (["base"], None, ["--trainer.name", "basic"], r"trainer\.name: .*'basic'"),
        (None, None, ["--backend", "openood"], r"backend: the benchmark runs standalone"),
    ],
)
def test_checked_before_anything_is_computed(tiny, tmp_path, methods, seeds, overrides, message):
    with pytest.raises(InputError, match=message):
        benchmark([tiny.file], ["--root", str(tmp_path / "out"), *overrides], methods, seeds)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["ood_dataset.farood.scrambled", "dataset.test"])
def test_lists_are_checked_first(tiny, tmp_path, monkeypatch, key):
    monkeypatch.setattr(jobs, "train", lambda experiment: pytest.fail("trained first"))
    with pytest.raises(InputError, match=rf"nowhere\.txt: no such image list \({key}"):
        benchmark([tiny.file], ["--root", str(tmp_path), f"--{key}.imglist_pth", "nowhere.txt"], ["base"], 1)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "values"), [("lr", [0.01, 0.1]), ("schedule", ["cosine", "linear"])])
def test_varied_key(tiny, dream, tmp_path, key, values):
    keys = ["--benchmark.vary", f"optimizer.{key}", "--benchmark.values", json.dumps(values), "--root", str(tmp_path)]
    report = benchmark([tiny.file], [*keys, "--dream.cache_dir", str(tiny.root / "dream")], ["base"], 1)
    found = {path.parent.name: yaml.safe_load((path / "config.yml").read_text()) for path in tmp_path.glob("runs/*/s0")}
    assert {name: config["optimizer"][key] for name, config in found.items()} == {f"base, {key} {v}": v for v in values}
    assert "How well known and unknown images are told apart" in report.read_text()


def test_varied_key_needs_values(tiny):
    with pytest.raises(InputError, match="benchmark.vary: expected vary and values together"):
        tiny.config("--benchmark.vary", "optimizer.lr")


def test_report_says_how_to_run_again(benchmarked, tiny, tmp_path):
    overrides = ["--root", str(tmp_path / "a b"), *benchmarked.overrides[2:]]
    page = benchmark([tiny.file], overrides, methods=["base"], seeds=1).read_text()
    assert f"openood-dream benchmark --config {tiny.file} --methods base --seeds 1 --root" in page
    assert f"openood-dream job --config {tiny.file} benchmarks/methods/base.yml --root" in page
    assert "--method=base --seed 0" in page


@pytest.fixture
def tuned(tiny, tmp_path):
    """A benchmark with a method that begins with the weights of the base run of its seed, listed before it."""
    start = {"pretrained": True, "checkpoint": "'@{root}'/runs/base/s'@{seed}'/best.ckpt"}
    (tmp_path / "tuned.yml").write_text(yaml.safe_dump({"network": start}))
    methods = {
        "tuned": ["benchmarks/methods/base.yml", str(tmp_path / "tuned.yml")],
        "base": ["benchmarks/methods/base.yml"],
    }
    (tmp_path / "both.yml").write_text(yaml.safe_dump({"benchmark": {"methods": methods, "postprocessors": ["msp"]}}))
    root = tmp_path / "out"
    words = ["--root", str(root), "--dream.cache_dir", str(tiny.root / "dream"), "--data_root", str(tiny.root / "data")]
    return SimpleNamespace(files=[tiny.file, str(tmp_path / "both.yml")], words=words, root=root)


def test_a_method_that_begins_with_another_comes_after_it(tuned):
    benchmark(tuned.files, tuned.words, methods=["tuned", "base"], seeds=1)
    assert scored(tuned.root) == {"tuned/s0/msp", "base/s0/msp"}
    record = json.loads((tuned.root / "runs/tuned/s0/train.json").read_text())
    weights = tuned.root / "runs/base/s0/best.ckpt"
    assert record["inputs"]["network"]["checkpoint"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    before = stamps(tuned.root / "runs")
    benchmark(tuned.files, tuned.words, methods=["tuned"], seeds=1)  # alone, now that base is there
    assert stamps(tuned.root / "runs") == before


def test_a_method_is_not_begun_without_the_weights_that_it_needs(tuned):
    with pytest.raises(InputError, match="--methods: tuned begins with the weights of base, .* add base"):
        benchmark(tuned.files, tuned.words, methods=["tuned"], seeds=1)
    assert not tuned.root.exists()
