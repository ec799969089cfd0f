"""Whole jobs: what a run leaves behind, when it is reused, and when it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from openood_dream import data, evaluate, imagine, leaderboard, pipelines, store
from openood_dream.config import InputError
from openood_dream.networks import get_network, load_weights
from openood_dream.trainers import BaseTrainer, OutlierTrainer


@pytest.fixture
def base(tiny, tmp_path):
    """The tiny config of cross-entropy training, in a root of its own."""

    def config(*overrides: str):
        return tiny.method("base", "--root", str(tmp_path / "out"), *overrides)

    return config


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "best.ckpt", weights_only=True)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------------- training


def test_a_run_leaves_its_settings_checkpoints_and_history(base):
    folder = pipelines.train(base("--optimizer.num_epochs", "3"))
    history = json.loads((folder / "train.json").read_text())["epochs"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    last = f"last_epoch3_acc{history[-1]['val_acc'] / 100:.4f}.ckpt"
    assert {path.name for path in folder.iterdir()} == {"config.yml", "best.ckpt", "train.json", last}
    assert yaml.safe_load((folder / "config.yml").read_text())["optimizer"]["num_epochs"] == 3
    net = get_network(base())
    load_weights(net, folder / "best.ckpt")
    accuracy = evaluate.accuracy(net, data.id_loader(base(), "val"), torch.device("cpu"))
    assert 100 * accuracy == pytest.approx(max(row["val_acc"] for row in history), abs=1e-6)


def test_the_folder_is_the_output_dir_with_method_and_seed(base, tmp_path):
    assert pipelines.train(base("--seed", "4")) == tmp_path / "out" / "runs" / "base" / "s4"


def test_a_finished_run_is_reused(base):
    folder = pipelines.train(base())
    before = stamps(folder)
    assert pipelines.train(base()) == folder and stamps(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        ("--optimizer.lr", "0.05"),
        ("--network.args.channels", "[8, 8, 8, 8]"),
        ("--dataset.train.batch_size", "17"),
        ("--dataset.normalization_type", "cifar10"),
        ("--preprocessor.horizontal_flip", "true"),
        ("--dataset.train.imglist_pth", '"@{dataset.val.imglist_pth}"'),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(base, change):
    folder = pipelines.train(base())
    before = stamps(folder)
    with pytest.raises(InputError, match=r"s0: holds a run of another configuration; .*--merge_option merge"):
        pipelines.train(base(*change))
    assert stamps(folder) == before


def test_weights_that_another_program_left_are_not_replaced(base):
    (folder := Path(base().output_dir)).mkdir(parents=True)
    (folder / "best.ckpt").write_bytes(b"theirs")
    with pytest.raises(InputError, match=r"s0: holds a run of another configuration; .*--merge_option merge"):
        pipelines.train(base())
    assert (folder / "best.ckpt").read_bytes() == b"theirs"
    pipelines.train(base("--merge_option", "merge"))
    assert (folder / "best.ckpt").read_bytes() != b"theirs"


def test_with_merge_another_run_takes_the_folder(base):
    folder = pipelines.train(base())
    before = weights(folder)
    assert pipelines.train(base("--optimizer.num_epochs", "2", "--merge_option", "merge")) == folder
    assert not equal(before, weights(folder))
    assert len(list(folder.glob("last_epoch*.ckpt"))) == 1
    assert yaml.safe_load((folder / "config.yml").read_text())["optimizer"]["num_epochs"] == 2


def test_an_interrupted_run_starts_again_and_ends_as_if_it_had_not_been(base, tmp_path, monkeypatch):
    expected = weights(pipelines.train(base("--optimizer.num_epochs", "2", "--output_dir", str(tmp_path / "whole"))))
    epoch = BaseTrainer.train_epoch

    def interrupted(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BaseTrainer, "train_epoch", interrupted)
        pipelines.train(base("--optimizer.num_epochs", "2"))
    with pytest.raises(InputError, match="holds a run of another configuration"):
        pipelines.train(base("--optimizer.num_epochs", "2", "--optimizer.lr", "0.05"))
    assert equal(weights(pipelines.train(base("--optimizer.num_epochs", "2"))), expected)


def test_the_seed_decides_the_weights(base, tmp_path):
    first = weights(pipelines.train(base()))
    torch.rand(7)  # whatever ran before
    again = weights(pipelines.train(base("--output_dir", str(tmp_path / "again"))))
    other = weights(pipelines.train(base("--seed", "1")))
    assert equal(first, again) and not equal(first, other)


def test_base_needs_no_dream(base):
    config = base()
    del config["dream"]
    assert (pipelines.train(config) / "best.ckpt").exists()


# ------------------------------------------------------------------------------------------------------------ outliers


def test_auxiliary_outliers_are_augmented_like_training_images(tiny):
    """In OpenOOD's outlier exposure they get the transforms of tests."""
    loader, _ = pipelines.outlier_set(tiny.method("oe"))
    assert loader.dataset.augment and len(loader.dataset) == 800 and set(loader.dataset.labels.tolist()) == {-1}


def test_the_imagined_set_takes_the_place_of_the_word_imagined(tiny, chain):
    config = tiny.method("dream_ood")
    assert config.dataset.oe.imglist_pth == "imagined"
    loader, identity = pipelines.outlier_set(config)
    assert identity == chain.images.hash and config.outlier_data == "imagined (knn)"
    assert [name for name, _ in loader.dataset.rows] == [
        name for name, _ in store.read_imglist(chain.images.path / "imglist.txt")
    ]


def test_training_with_imagined_outliers_sees_them(tiny, chain, tmp_path, monkeypatch):
    seen = set()
    batches = OutlierTrainer.batches

    def watched(self):
        for inside, outside in batches(self):
            seen.update(outside["image_name"])
            yield inside, outside

    monkeypatch.setattr(OutlierTrainer, "batches", watched)
    folder = pipelines.train(tiny.method("dream_ood", "--output_dir", str(tmp_path)))
    assert seen == {name for name, _ in store.read_imglist(chain.images.path / "imglist.txt")}
    saved = yaml.safe_load((folder / "config.yml").read_text())
    assert saved["outlier_data"] == "imagined (knn)" and saved["dataset"]["oe"]["data_dir"] == str(chain.images.path)


def test_other_outliers_make_another_run(tiny, chain, tmp_path):
    where = ["--output_dir", str(tmp_path)]
    pipelines.train(tiny.method("dream_ood", *where))
    with pytest.raises(InputError, match="holds a run of another configuration"):
        pipelines.train(tiny.method("dream_ood", *where, "--dream.synthesis.per_class", "1"))


# ----------------------------------------------------------------------------------------------------------- benchmark


def test_a_benchmark_trains_every_method_with_every_seed_and_scores_it_with_every_postprocessor(benchmarked):
    scored = {
        path.parent.relative_to(benchmarked.root / "runs").as_posix() for path in benchmarked.root.rglob("ood.csv")
    }
    assert scored == {
        f"{method}/s{seed}/{name}"
        for method in ("base", "oe", "dream_ood")
        for seed in (0, 1)
        for name in ("msp", "ebo", "knn")
    }
    assert benchmarked.report == benchmarked.root / "report.html" and benchmarked.report.exists()


def test_a_method_may_have_postprocessors_of_its_own(benchmarked, tiny, tmp_path):
    (tmp_path / "own.yml").write_text("benchmark: {postprocessors: [mls]}")
    (tmp_path / "both.yml").write_text(
        f"benchmark:\n  methods:\n    own: [benchmarks/methods/base.yml, {json.dumps(str(tmp_path / 'own.yml'))}]"
    )
    root = tmp_path / "out"
    files, overrides = [tiny.file, str(tmp_path / "both.yml")], ["--root", str(root), *benchmarked.overrides[2:]]
    report = pipelines.benchmark(files, overrides, methods=["base", "own"], seeds=1)
    scored = {path.parent.relative_to(root / "runs").as_posix() for path in root.rglob("ood.csv")}
    assert scored == {"own/s0/mls", *(f"base/s0/{name}" for name in ("msp", "ebo", "knn"))}
    assert "own: mls confidence" not in report.read_text() and "score_histograms: own" in report.read_text()


def test_a_second_benchmark_computes_nothing_again(benchmarked, tiny, monkeypatch):
    monkeypatch.setattr(BaseTrainer, "train_epoch", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(evaluate, "forward_pass", lambda *args: pytest.fail("scored again"))
    monkeypatch.setattr(imagine.Imaginer, "__call__", lambda *args: pytest.fail("drew again"))
    assert pipelines.benchmark([tiny.file], benchmarked.overrides) == benchmarked.report


def test_only_what_is_missing_is_computed(benchmarked, tiny, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(benchmarked.root, root)
    shutil.rmtree(root / "runs" / "oe" / "s1")
    (root / "runs" / "base" / "s0" / "ebo" / "evaluate.json").unlink()
    before = stamps(root)
    overrides = ["--root", str(root), *benchmarked.overrides[2:]]
    pipelines.benchmark([tiny.file], overrides, methods=["base", "oe"])
    after = stamps(root / "runs")
    changed = {name for name, stamp in after.items() if before.get(f"runs/{name}") != stamp}
    assert {name.split("/")[0:2] == ["oe", "s1"] or name.startswith("base/s0/ebo/") for name in changed} == {True}
    again = (root / "runs" / "oe" / "s1" / "ebo" / "ood.csv").read_text()
    assert again == (benchmarked.root / "runs" / "oe" / "s1" / "ebo" / "ood.csv").read_text()


def test_the_checkpoint_scored_alone_gives_the_same_numbers(benchmarked, tiny, tmp_path):
    run = benchmarked.root / "runs" / "base" / "s0"
    layers = ["pipelines/test/test_ood.yml", "postprocessors/ebo.yml"]
    config = tiny.config(
        "--network.checkpoint",
        str(run / "best.ckpt"),
        "--output_dir",
        str(tmp_path),
        "--exp_name",
        "one",
        layers=layers,
    )
    folder = pipelines.test(config)
    assert folder == tmp_path / "one"
    assert (folder / "ood.csv").read_text() == (run / "ebo" / "ood.csv").read_text()
    assert pipelines.test(config) == folder
    before = stamps(folder)
    config.network.checkpoint = str(benchmarked.root / "runs" / "oe" / "s0" / "best.ckpt")
    with pytest.raises(InputError, match=r"one: holds scores of another checkpoint; .*--merge_option merge"):
        pipelines.test(config)
    assert stamps(folder) == before


def test_the_table_has_no_scores_that_the_benchmark_does_not_ask_for(benchmarked, tiny, tmp_path):
    shutil.copytree(benchmarked.root, tmp_path / "out")
    asked = ["--benchmark.postprocessors", "[ebo]", "--optimizer.lr", "0.05", "--merge_option", "merge"]
    where = ["--root", str(tmp_path / "out"), "--dream.cache_dir", str(tiny.root / "dream")]
    pipelines.benchmark([tiny.file], [*where, *asked], ["base"], 1)
    rows = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert [(row["method"], row["postprocessor"]) for row in rows] == [("base", "ebo")]
    with pytest.raises(InputError, match=r"s0/(knn|msp): scores of a network that was trained again since"):
        leaderboard.collect([tmp_path / "out" / "runs" / "base"])


@pytest.mark.parametrize("label", ["0.07", "on", "a #b", "wide: x2"])
def test_a_method_may_be_called_like_a_number_or_have_signs_of_yaml_in_its_name(tiny, label):
    methods = json.dumps({label: ["benchmarks/methods/base.yml"]})
    (job, *_) = pipelines.benchmark_jobs([tiny.file], ["--benchmark.methods", methods], [label], 1)
    assert job.config.method == label and Path(job.config.output_dir).parts[-2:] == (label, "s0")


def test_passes_lie_beside_the_checkpoint_or_in_the_output_where_that_is_not_allowed(tmp_path):
    checkpoint, out = tmp_path / "run" / "best.ckpt", tmp_path / "out"
    assert evaluate.passes_dir(checkpoint, out) == tmp_path / "run" / "passes"
    (tmp_path / "run" / "passes").rmdir()
    (tmp_path / "run" / "passes").write_text("in the way")
    assert evaluate.passes_dir(checkpoint, out) == out / "passes"


def test_every_network_of_a_method_has_the_same_first_weights_for_a_seed_and_other_ones_in_the_end(benchmarked):
    finals = [weights(benchmarked.root / "runs" / method / "s0") for method in ("base", "oe", "dream_ood")]
    assert not equal(finals[0], finals[1]) and not equal(finals[0], finals[2]) and not equal(finals[1], finals[2])


@pytest.mark.parametrize(
    "methods, seeds, overrides, message",
    [
        (
            ["bas"],
            None,
            [],
            r"--methods: unknown 'bas'; did you mean 'base'\? known are base, dream_ood, oe",
        ),
        (None, 3, [], r"--seeds: expected 1 to 2 \(benchmark\.seeds\), got 3"),
        (None, None, ["--benchmark.postprocessors", "[ebo, knnn]"], r"postprocessors/knnn\.yml: no such file"),
        (None, None, ["--trainer.name", "basic"], r"trainer\.name: .*'basic'"),
    ],
)
def test_a_benchmark_is_checked_before_anything_is_computed(tiny, tmp_path, methods, seeds, overrides, message):
    if overrides[:1] == ["--trainer.name"]:
        methods = ["base"]
    with pytest.raises(InputError, match=message):
        pipelines.benchmark([tiny.file], ["--root", str(tmp_path / "out"), *overrides], methods, seeds)
    assert not (tmp_path / "out").exists()


def test_a_varied_key_makes_a_run_of_every_value_and_the_report_compares_them(tiny, chain, tmp_path):
    keys = ["--benchmark.vary", "optimizer.lr", "--benchmark.values", "[0.01, 0.1]", "--root", str(tmp_path)]
    report = pipelines.benchmark([tiny.file], [*keys, "--dream.cache_dir", str(tiny.root / "dream")], ["base"], 1)
    found = {path.parent.name: yaml.safe_load((path / "config.yml").read_text()) for path in tmp_path.glob("runs/*/s0")}
    assert {name: config["optimizer"]["lr"] for name, config in found.items()} == {
        "base, lr 0.01": 0.01,
        "base, lr 0.1": 0.1,
    }
    assert "How well known and unknown images are told apart" in report.read_text()


def test_a_key_that_is_varied_needs_values(tiny):
    with pytest.raises(InputError, match="benchmark.vary: expected vary and values together"):
        tiny.config("--benchmark.vary", "optimizer.lr")


@pytest.mark.parametrize(
    "key, message",
    [
        ("ood_dataset.farood.noise.imglist_pth", r"nowhere\.txt: no such image list \(ood_dataset\.farood\.noise"),
        ("dataset.test.imglist_pth", r"nowhere\.txt: no such image list \(dataset\.test"),
    ],
)
def test_every_list_is_checked_before_the_first_training(tiny, tmp_path, monkeypatch, key, message):
    monkeypatch.setattr(pipelines, "train", lambda config: pytest.fail("trained first"))
    with pytest.raises(InputError, match=message):
        pipelines.benchmark([tiny.file], ["--root", str(tmp_path), f"--{key}", "nowhere.txt"], ["base"], 1)


def failing(monkeypatch, method: str, seed: int) -> None:
    """Makes the training of one job fail."""
    train = pipelines.train

    def partly(config):
        if (config.method, config.seed) == (method, seed):
            raise RuntimeError("the card is <on> fire")
        return train(config)

    monkeypatch.setattr(pipelines, "train", partly)


def test_a_failed_job_stands_in_its_row_and_the_others_go_on_and_a_rerun_continues(tiny, tmp_path, monkeypatch):
    files, overrides = [tiny.file], ["--root", str(tmp_path), "--benchmark.postprocessors", "[msp]"]
    with monkeypatch.context() as patch:
        failing(patch, "base", 1)
        with pytest.raises(pipelines.JobsFailed, match=r"1 of 2 jobs failed: base seed 1 \(.*base-s1\.log\)") as error:
            pipelines.benchmark(files, overrides, ["base"])
    (row,) = json.loads((tmp_path / "leaderboard.json").read_text())
    assert (
        row["seeds"] == 1
        and "seed 1 failed: " in row["notes"]
        and "RuntimeError: the card is <on> fire" in row["notes"]
    )
    page = error.value.report.read_text()
    assert "the card is &lt;on&gt; fire" in page and "<on>" not in page
    before = stamps(tmp_path / "runs" / "base" / "s0")
    assert pipelines.benchmark(files, overrides, ["base"]) == error.value.report
    assert json.loads((tmp_path / "leaderboard.json").read_text())[0]["seeds"] == 2
    assert stamps(tmp_path / "runs" / "base" / "s0") == before


def test_where_all_jobs_fail_there_is_no_report(tiny, tmp_path, monkeypatch):
    failing(monkeypatch, "base", 0)
    with pytest.raises(pipelines.JobsFailed, match="all 1 jobs failed: base seed 0") as error:
        pipelines.benchmark([tiny.file], ["--root", str(tmp_path)], ["base"], 1)
    assert error.value.report is None and not (tmp_path / "report.html").exists()


def same_runs(one: Path, other: Path) -> None:
    for seed in (0, 1):
        runs = [root / "runs" / "base" / f"s{seed}" for root in (one, other)]
        assert equal(*map(weights, runs))
        assert len({(run / "msp" / "ood.csv").read_text() for run in runs}) == 1


def test_two_seeds_in_parallel_give_what_they_give_one_after_the_other(benchmarked, tiny, tmp_path):
    overrides = ["--root", str(tmp_path), *benchmarked.overrides[2:]]
    pipelines.benchmark([tiny.file], overrides, ["base"], workers=2)
    same_runs(benchmarked.root, tmp_path)
    assert not list((tmp_path / "logs").glob("*.failed"))


def test_a_job_that_fails_in_its_own_process_leaves_its_log(tiny, tmp_path):
    blocked = tmp_path / "runs" / "base"
    blocked.mkdir(parents=True)
    (blocked / "s1").write_text("in the way")
    overrides = ["--root", str(tmp_path), "--benchmark.postprocessors", "[msp]"]
    with pytest.raises(pipelines.JobsFailed, match="1 of 2 jobs failed: base seed 1"):
        pipelines.benchmark([tiny.file], overrides, ["base"], workers=2)
    (row,) = json.loads((tmp_path / "leaderboard.json").read_text())
    assert row["seeds"] == 1 and "openood-dream: error: " in row["notes"] and "cannot write here" in row["notes"]


@pytest.mark.slow
def test_jobs_on_ray_give_what_they_give_one_after_the_other(benchmarked, tiny, tmp_path):
    pytest.importorskip("ray")
    overrides = ["--root", str(tmp_path), *benchmarked.overrides[2:]]
    pipelines.benchmark([tiny.file], overrides, ["base"], executor="ray")
    same_runs(benchmarked.root, tmp_path)


def test_the_report_has_the_command_and_what_makes_each_run_again(benchmarked, tiny, tmp_path):
    overrides = ["--root", str(tmp_path / "a b"), *benchmarked.overrides[2:]]
    page = pipelines.benchmark([tiny.file], overrides, methods=["base"], seeds=1).read_text()
    assert f"openood-dream benchmark --config {tiny.file} --methods base --seeds 1 --root" in page
    assert f"openood-dream job --config {tiny.file} benchmarks/methods/base.yml --root" in page
    assert "--method base --seed 0" in page


def test_a_job_alone_trains_and_scores_as_the_benchmark_does(benchmarked, tiny, tmp_path):
    words = ["--root", str(tmp_path), *benchmarked.overrides[2:], "--method", "base", "--seed", "1"]
    folder = pipelines.job([tiny.file, "benchmarks/methods/base.yml"], words)
    assert folder == tmp_path / "runs" / "base" / "s1"
    assert equal(weights(folder), weights(benchmarked.root / "runs" / "base" / "s1"))


# ----------------------------------------------------------------------------------------------------- run and stages


def test_run_does_what_the_pipeline_is_named(tiny, tmp_path):
    layers, where = ["benchmarks/methods/base.yml"], ["--root", str(tmp_path)]
    assert pipelines.run([tiny.file, *layers], where) == tmp_path / "runs" / "base" / "s0"
    assert (tmp_path / "runs" / "base" / "s0" / "best.ckpt").exists()
    with pytest.raises(InputError, match=r"command line: pipeline\.name: unknown 'trian'; .*did you mean 'train'\?"):
        pipelines.run([tiny.file], [*where, "--pipeline.name", "trian"])


@pytest.mark.parametrize("name", ["anchors", "space", "sample", "synthesize"])
def test_each_stage_can_be_run_by_its_name(chain, tiny, name):
    expected = {"anchors": chain.anchors, "space": chain.space, "sample": chain.outliers, "synthesize": chain.images}
    artifact = pipelines.stage(name, [tiny.file], [])
    assert artifact.reused and artifact.path == expected[name].path


def test_a_missing_key_is_named_with_how_to_set_it(base):
    config = base()
    del config["optimizer"]["lr"]
    with pytest.raises(InputError, match=r"optimizer\.lr: missing; add a config file that sets it, or --optimizer\.lr"):
        pipelines.train(config)


@pytest.mark.parametrize("key", ["num_classes", "image_size", "pre_size"])
@pytest.mark.parametrize("value", ["six", "0", "2.5", "true"])
def test_sizes_of_a_data_set_are_whole_numbers(base, key, value):
    with pytest.raises(InputError, match=rf"command line: dataset\.{key}: expected an integer >= 1, got"):
        pipelines.train(base(f"--dataset.{key}", value))
