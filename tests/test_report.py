"""The report of a benchmark: its findings are the runs', and it needs nothing but itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from openood_dream import data, imagine, leaderboard, pipelines, report, store
from openood_dream.networks import get_network, load_weights
from openood_dream.trainers.loop import save_weights


@pytest.fixture(scope="module")
def page(benchmarked) -> str:
    return benchmarked.report.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)).split())


def test_tables_lie_beside_the_report_in_three_formats(benchmarked):
    board = pd.read_csv(benchmarked.root / "leaderboard.csv")
    assert len(board) == 9 and set(board["method"]) == {"base", "oe", "dream_ood"} and (board["seeds"] == 2).all()
    rows = json.loads((benchmarked.root / "leaderboard.json").read_text())
    assert [row["near_auroc"] for row in rows] == pytest.approx(board["near_auroc"].tolist())
    markdown = (benchmarked.root / "leaderboard.md").read_text().splitlines()
    assert (
        len([line for line in markdown if line.startswith("|")]) == 11
        and f"{board['near_auroc'][0]:.2f} ±" in markdown[2]
    )


def test_a_row_is_the_mean_and_deviation_of_its_runs(benchmarked):
    row = (
        pd.read_csv(benchmarked.root / "leaderboard.csv")
        .set_index(["method", "postprocessor"])
        .loc[("dream_ood", "ebo")]
    )
    values = []
    for seed in (0, 1):
        ood = pd.read_csv(benchmarked.root / "runs" / "dream_ood" / f"s{seed}" / "ebo" / "ood.csv").set_index("dataset")
        values.append(ood.loc["nearood", "AUROC"])
    assert row["near_auroc"] == pytest.approx(np.mean(values)) and row["near_auroc_std"] == pytest.approx(
        np.std(values, ddof=1)
    )


def test_the_report_says_what_each_method_learned_from(benchmarked):
    board = pd.read_csv(benchmarked.root / "leaderboard.csv", keep_default_na=False)
    assert dict(zip(board["method"], board["outlier_data"])) == {
        "base": "none",
        "oe": "train_aux",
        "dream_ood": "imagined (knn)",
    }


def test_the_report_is_one_file_that_loads_nothing(page):
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "<link" not in page and not re.search(r"url\((?!data:)", page)
    assert page.count("data:image/png;base64,") == 13


def test_the_report_has_every_figure_and_fact_that_it_promises(page):
    text = text_of(page)
    for figure in (
        "score_histograms",
        "roc_curves",
        "training_curves",
        "outliers",
        "plain_prompts",
        "image_lines",
        "embedding_map",
    ):
        assert f'alt="{figure}' in page, figure
    captions = dict(re.findall(r'alt="(\w+)[^"]*">\s*<figcaption>(.*?)</figcaption>', page, re.DOTALL))
    assert len(set(captions.values())) == len(captions)  # no figure has another's caption,
    assert not set(captions) & set(captions.values())  # nor its name for want of one
    for stage in (
        "anchors",
        "space",
        "generator",
        "outliers",
        "images",
        "train: base",
        "train: oe",
        "train: dream_ood",
    ):
        assert stage in text, stage
    for word in ("torch", "diffusers", "python", "num_epochs", "openood-dream benchmark --config"):
        assert word in text, word


def test_the_report_says_how_often_the_generator_draws_the_class_of_the_prompt(benchmarked, tiny, page):
    config = tiny.config(*benchmarked.overrides)
    net = get_network(config)
    load_weights(net, benchmarked.root / "runs" / "base" / "s0" / "best.ckpt")
    images = store.read_tensors(imagine.plain(config, report.PLAIN_PER_CLASS).path / "plain.safetensors")["images"]
    with torch.inference_mode():
        right = [net.eval()(of_class.float() / 127.5 - 1).argmax(1) == label for label, of_class in enumerate(images)]
    share = 100 * torch.cat(right).float().mean().item()
    assert f"sees the class of the prompt in {share:.1f} % of {len(torch.cat(right))} plain samples" in text_of(page)


def test_the_report_says_how_good_the_space_is(chain, page):
    assert f"{chain.space.manifest['val_accuracy']:.1f} % validation accuracy" in text_of(page)


def test_images_are_classified_as_the_network_was_trained_to_see_them(benchmarked, tiny):
    config = tiny.config(*benchmarked.overrides)
    net = get_network(config)
    load_weights(net, benchmarked.root / "runs" / "base" / "s0" / "best.ckpt")
    test = data.id_loader(config, "test").dataset
    files = torch.stack([torch.from_numpy(np.array(test.image(i))).permute(2, 0, 1) for i in range(20)])
    with torch.inference_mode():
        expected = net.eval()(torch.stack([test[i]["data"] for i in range(20)]))
    small = report.classify(net, torch.stack([test.pixels[i] for i in range(20)]), config)
    assert torch.allclose(small, expected, atol=1e-4)
    assert files.shape[-1] == 32 and torch.allclose(report.classify(net, files, config), expected, atol=0.1)


def test_methods_with_the_same_images_are_drawn_once_and_those_of_another_space_not_at_all(chain, tiny):
    sampling, space = ["--dream.outliers.method", "inlier"], ["--dream.space.epochs", "1"]
    runs = {"a": [], "other trainer": [], "inliers": sampling, "other space": space, "plain": []}
    configs = [tiny.config("--method", method, *overrides) for method, overrides in runs.items()]
    for config in configs[:-1]:
        config.outlier_data = "imagined"
    assert list(report.imagined([*configs, *configs])) == ["a", "inliers"]


def test_a_benchmark_without_imagination_has_a_report_too(benchmarked, tiny, tmp_path):
    overrides = ["--root", str(tmp_path / "out"), *benchmarked.overrides[2:]]
    path = pipelines.benchmark([tiny.file], overrides, methods=["base"], seeds=1)
    text = text_of(path.read_text(encoding="utf-8"))
    assert "over 1 seed," in text and "plain samples" not in text
    assert len(leaderboard.table(leaderboard.collect([tmp_path / "out"]))) == 3


def test_a_generative_network_shows_what_it_draws_and_its_bits(tiny, tmp_path):
    keys = ["--network.latent", "8", "--network.width", "4", "--network.channels", "1", "--method", "frl"]
    config = tiny.config(*keys, layers=["networks/vae_small.yml", "pipelines/train/frl.yml"])
    net = get_network(config)
    save_weights(net, tmp_path / "best.ckpt")
    store.write_json(tmp_path / "train.json", {"epochs": [{"val_acc": 3.125}, {"val_acc": 6.25}, {"val_acc": 5}]})
    notes = []
    assert list(report.sampled({"frl": (tmp_path, config)}, notes)) == ["samples"]
    assert notes == ["frl, seed 0: 4.00 bits per dimension of the validation images, 8.0 per pixel of 2 channels."]
    drawn = report.draw(tmp_path, config)
    images = store.read_tensors(drawn.path / "samples.safetensors")["images"]
    torch.manual_seed(0)
    with torch.inference_mode():
        assert drawn.reused and torch.equal(images, net.eval().model.sample(report.COLUMNS))
    assert report.sampled({"base": (tmp_path, tiny.config("--method", "base"))}, []) == {}
