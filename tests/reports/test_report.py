"""The report of a benchmark: its findings are the runs', and it needs nothing but itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Tiny

from openood_dream.dream.plain import load_plain
from openood_dream.experiment import Experiment
from openood_dream.networks.factory import get_network
from openood_dream.pipelines.benchmark import benchmark
from openood_dream.reports import generative, report
from openood_dream.reports.benchmarked import Run, costs
from openood_dream.reports.runs import collect
from openood_dream.reports.table import table
from openood_dream.store.files import write_json
from openood_dream.store.tensors import read_tensors, write_checkpoint


@pytest.fixture(scope="module")
def page(benchmarked) -> str:
    return benchmarked.report.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)).split())


def test_tables_lie_beside_the_report(benchmarked):
    board = pd.read_csv(benchmarked.root / "leaderboard.csv")
    assert len(board) == 9 and set(board["method"]) == {"base", "oe", "dream_ood"} and (board["seeds"] == 2).all()
    rows = json.loads((benchmarked.root / "leaderboard.json").read_text())
    assert [row["near_auroc"] for row in rows] == pytest.approx(board["near_auroc"].tolist())
    markdown = (benchmarked.root / "leaderboard.md").read_text().splitlines()
    assert len([line for line in markdown if line.startswith("|")]) == 11
    assert f"{board['near_auroc'][0]:.2f} ±" in markdown[2]


def test_a_row_is_the_mean_and_deviation_of_its_runs(benchmarked):
    board = pd.read_csv(benchmarked.root / "leaderboard.csv").set_index(["method", "postprocessor"])
    row, values = board.loc[("dream_ood", "ebo")], []
    for seed in (0, 1):
        ood = pd.read_csv(benchmarked.root / "runs" / "dream_ood" / f"s{seed}" / "ebo" / "ood.csv").set_index("dataset")
        values.append(ood.loc["nearood", "AUROC"])
    assert row["near_auroc"] == pytest.approx(np.mean(values))
    assert row["near_auroc_std"] == pytest.approx(np.std(values, ddof=1))


def test_outlier_data_of_each_method(benchmarked):
    board = pd.read_csv(benchmarked.root / "leaderboard.csv", keep_default_na=False)
    expected = {"base": "none", "oe": "train_aux", "dream_ood": "imagined (knn)"}
    assert dict(zip(board["method"], board["outlier_data"])) == expected


def test_the_report_is_one_file_that_loads_nothing(page):
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "<link" not in page and not re.search(r"url\((?!data:)", page)
    assert page.count("data:image/png;base64,") == 2 * 12  # a light and a dark one of each figure


FIGURES = "comparison score_histograms roc_curves training_curves mistakes outliers plain_prompts image_lines embedding_map probe"
STAGES = ("anchors", "space", "generator", "outliers", "images", "train: base", "train: oe", "train: dream_ood")
WORDS = ("torch", "diffusers", "python", "num_epochs", "openood-dream benchmark --config")


def test_the_report_has_every_figure_and_fact(page):
    assert all(f'alt="{figure}' in page for figure in FIGURES.split())
    captions = re.findall(r'<h3 id="figure-\d+">.*?</h3>\s*<p class="caption">(.*?)</p>', page, re.DOTALL)
    assert len(set(captions)) == len(captions) == len(FIGURES.split())  # each has one, and none has another's
    text = text_of(page)
    assert [word for word in (*STAGES, *WORDS) if word not in text] == []


def base_run(benchmarked: SimpleNamespace, tiny: Tiny) -> Run:
    return Run(benchmarked.root / "runs" / "base" / "s0", tiny.config(*benchmarked.overrides))


def test_how_often_the_classifier_sees_the_class_of_the_prompt(benchmarked, tiny, page):
    run = base_run(benchmarked, tiny)
    net = run.network().eval()
    plain = load_plain(run.experiment.imagination.plain_samples)
    with torch.inference_mode():
        right = [net(of_class.float() / 127.5 - 1).argmax(1) == label for label, of_class in enumerate(plain)]
    share = 100 * torch.cat(right).float().mean().item()
    assert f"sees the class of the prompt in {share:.1f} % of {len(torch.cat(right))} plain samples" in text_of(page)


def test_how_good_the_space_is(dream, page):
    assert f"{dream.space.manifest['val_accuracy']:.1f} % validation accuracy" in text_of(page)


def run_that_learned(folder: Path, experiment: Experiment, outlier_data: str) -> Run:
    write_json(folder / "train.json", {"hash": "a", "outlier_data": outlier_data})
    return Run(folder, experiment)


def test_each_imagination_is_shown_once(dream, tiny, tmp_path):
    sampling, space = ["--dream.outliers.method", "inlier"], ["--dream.space.epochs", "1"]
    overrides = {"a": [], "other trainer": [], "inliers": sampling, "other space": space, "plain": [], "oal": []}
    learned = ["imagined (knn)", "imagined (knn)", "imagined (inlier)", "imagined (knn)", "none", "imagined (latents)"]
    runs = [
        run_that_learned(tmp_path / method, tiny.config("--method", method, *keys), outlier_data)
        for (method, keys), outlier_data in zip(overrides.items(), learned, strict=True)
    ]
    assert list(report.imagined([*runs, *runs])) == ["a", "inliers", "other space"]


def test_image_sets_are_shown_once_whatever_a_filter_left_of_them(dream, tiny):
    kinds = {
        "a": [],
        "unfiltered": ["--dream.filter.distance", "null"],
        "inliers": ["--dream.outliers.method", "inlier"],
    }
    experiments = {method: tiny.config(*words) for method, words in kinds.items()}
    assert list(report.each_once(experiments, lambda one: one.images)) == ["a", "inliers"]
    assert list(report.each_once(experiments, lambda one: one.space)) == ["a"]


def test_costs_are_those_of_the_imagination_and_of_a_seed(benchmarked, tiny, dream):
    layers = ["pipelines/train/dream_ood.yml", "preprocessors/dream.yml"]
    runs = [
        Run(benchmarked.root / "runs" / method / f"s{seed}", tiny.config(*benchmarked.overrides, *words, layers=more))
        for method, words, more in (
            ("base", ["--method", "base"], []),
            ("dream_ood", ["--method", "dream_ood"], layers),
        )
        for seed in (0, 1)
    ]
    found = costs(runs)
    assert found["base"].imagining == 0
    assert found["base"].training == pytest.approx(np.mean([run.record["seconds"] for run in runs[:2]]))
    made = [dream.anchors, dream.space, dream.generator, dream.outliers, dream.images]
    assert found["dream_ood"].imagining == pytest.approx(sum(artifact.manifest["seconds"] for artifact in made))


def test_where_the_imagined_images_are(benchmarked, dream):
    found = json.loads((benchmarked.root / "imagined.json").read_text())
    assert list(found) == ["dream_ood"] and found["dream_ood"]["folder"] == str(dream.images.path)
    assert found["dream_ood"]["kept"] == len(Path(found["dream_ood"]["list"]).read_text().splitlines())
    assert found["dream_ood"]["images"] == dream.images.manifest["images"]


def test_benchmark_without_imagination(benchmarked, tiny, tmp_path):
    overrides = ["--root", str(tmp_path / "out"), *benchmarked.overrides[2:]]
    path = benchmark([tiny.file], overrides, methods=["base"], seeds=1)
    text = text_of(path.read_text(encoding="utf-8"))
    assert "over 1 seed," in text and "plain samples" not in text
    assert len(table(collect([tmp_path / "out"]))) == 3


def test_a_generative_network_shows_what_it_draws_and_its_bits(tiny, tmp_path):
    keys = ["--network.latent", "8", "--network.width", "4", "--network.channels", "1", "--method", "frl"]
    experiment = tiny.config(*keys, layers=["networks/vae_small.yml", "pipelines/train/frl.yml"])
    net = get_network(experiment.network, image_size=experiment.dataset.image_size)
    write_checkpoint(tmp_path / "best.ckpt", net.state_dict())
    write_json(
        tmp_path / "train.json", {"hash": "a", "epochs": [{"val_acc": 3.125}, {"val_acc": 6.25}, {"val_acc": 5}]}
    )
    run = Run(tmp_path, experiment)
    figures, notes = generative.sampled({"frl": run})
    assert list(figures) == ["samples"]
    assert notes == ["frl, seed 0: 4.00 bits per dimension of the validation images, 8.0 per pixel of 2 channels."]
    drawn = generative.draw(run, experiment.network)
    images = read_tensors(drawn.path / "samples.safetensors")["images"]
    torch.manual_seed(0)
    with torch.inference_mode():
        assert drawn.reused and torch.equal(images, net.eval().model.sample(generative.COLUMNS))


def test_classifiers_draw_no_samples(tiny, tmp_path):
    assert generative.sampled({"base": Run(tmp_path, tiny.config("--method", "base"))}) == ({}, [])
