"""Bad input ends in exit code 2 and one line that names file, key and the way out, before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from openood_dream import store

IMGLISTS = "benchmark_imglist/digits"


@pytest.fixture
def rejected(command, tiny, chain, digits, tmp_path):
    """Runs a command that must be rejected with a line that holds all of `parts` and must leave all files alone."""
    places = [tiny.root, digits, tmp_path]

    def rejected(words: list, *parts: str) -> None:
        before = [stamps(place) for place in places]
        done = command(*words)
        assert done.code == 2, done
        assert len(done.err) == 1 and done.out == "", done
        assert done.err[0].startswith("openood-dream: error: ")
        for part in parts:
            assert part in done.err[0], done.err[0]
        assert [stamps(place) for place in places] == before

    return rejected


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def train(tiny, tmp_path):
    """The words of a training command whose root is not there yet."""
    return ["train", "--config", tiny.file, "benchmarks/methods/base.yml", "--root", tmp_path / "new"]


def layer(tmp_path: Path, text: str) -> str:
    (tmp_path / "layer.yml").write_text(text)
    return str(tmp_path / "layer.yml")


# ----------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize("name", ["run", "benchmark", "train", "evaluate", "anchors", "space", "sample", "synthesize"])
def test_a_missing_yaml_file(rejected, name):
    rejected(
        [name, "--config", "benchmarks/digit.yml"], "benchmarks/digit.yml: no such file", "did you mean", "digits.yml"
    )


@pytest.mark.parametrize(
    "text, parts",
    [
        ("a: [1, 2\nb: 3\n", ["layer.yml:2:"]),
        ("a: 1\n\tb: 2\n", ["layer.yml:2:"]),
        ("just words\n", ["expected a mapping of settings at the top level"]),
        ("", ["got an empty file"]),
        ("a: @{b}\n", ["layer.yml:1:", "put a reference in quotes"]),
        (
            "a: '@{optimiser.lr}'\n",
            ["a: the reference '@{optimiser.lr}' names no key; did you mean '@{optimizer.lr}'?"],
        ),
    ],
)
def test_a_malformed_yaml_file(rejected, train, tmp_path, text, parts):
    rejected([*train, "--config", layer(tmp_path, text)], "layer.yml", *parts)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("dream: {outlier: {k: 3}}", ["dream.outlier: unknown key", "'outliers'"]),
        ("dream: {outliers: {sgima: 0.1}}", ["dream.outliers.sgima: unknown key", "'sigma'"]),
        ("dream: {generator: {train: small, step: 5}}", ["dream.generator.step: unknown key", "'steps'"]),
        ("dreams: {}", ["dreams: unknown key", "'dream'"]),
        ("trainer: {name: oe, lambda: 1.0}", ["trainer.lambda: unknown key", "'lambda_oe'"]),
        ("benchmark: {seed: [1]}", ["benchmark.seed: unknown key", "'seeds'"]),
        ("divice: cpu", ["divice: unknown key", "'device'"]),
    ],
)
def test_an_unknown_key_in_a_file_and_the_nearest_valid_one(rejected, train, tmp_path, text, parts):
    rejected([*train, "--config", layer(tmp_path, text)], "layer.yml", *parts)


def test_an_unknown_key_on_the_command_line_and_the_nearest_valid_one(rejected, train):
    rejected([*train, "--optimizer.learning_rate", "1"], "command line: optimizer.learning_rate: unknown key")
    rejected(
        [*train, "--dream.space.epoch", "1"],
        "command line: dream.space.epoch: unknown key; did you mean '--dream.space.epochs'?",
    )


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("dream.outliers.k", "many", "an integer >= 1"),
        ("dream.outliers.sigma", "-1", "a number > 0 or 'auto'"),
        ("dream.outliers.method", "kn", "'knn'"),
        ("dream.space.epochs", "2.5", "an integer >= 1"),
        ("dream.synthesis.prompt", "a digit", "text with {} once"),
        ("dream.class_names", "{a: b}", "a file or a list of names"),
        ("seed", "-1", "an integer >= 0"),
        ("device", "gpu", "auto, cpu, mps, cuda or cuda:N"),
        ("backend", "torch", "'auto', 'openood' or 'standalone'"),
        ("trainer.name", "oee", "oe"),
        ("network.name", "timm:resnet19", "did you mean"),
        ("network.args", "{channels: eight}", "timm refuses"),
        ("dataset.num_classes", "six", "an integer >= 1"),
        ("dataset.train.batch_size", "many", "an integer >= 1"),
        ("dataset.interpolation", "cubic", "bicubic"),
        ("optimizer.num_epochs", "ten", "an integer >= 1"),
        ("optimizer.num_epochs", "0", "an integer >= 1"),
        ("optimizer.lr", "fast", "a number"),
        ("optimizer.momentum", "null", "optimizer.momentum"),
    ],
)
def test_a_wrong_type_or_an_impossible_value(rejected, train, key, value, expected):
    rejected([*train, f"--{key}", value], key, expected)


# ------------------------------------------------------------------------------------------------------------- the data


@pytest.fixture
def copy(digits, tmp_path) -> Path:
    """A data root of its own, to be damaged."""
    shutil.copytree(digits, tmp_path / "data")
    return tmp_path / "data"


def test_a_missing_imglist(rejected, train, tiny, tmp_path):
    missing = tmp_path / "none.txt"
    for split in ("train", "val"):
        key = f"dataset.{split}.imglist_pth"
        rejected([*train, f"--{key}", missing], f"{missing}: no such image list", key)
    rejected(["space", "--config", tiny.file, "--dataset.train.imglist_pth", missing], f"{missing}: no such image list")
    where = ["--root", tmp_path / "new", "--dataset.oe.imglist_pth", missing]
    rejected(
        ["train", "--config", tiny.file, "pipelines/train/oe.yml", "datasets/digits/digits_oe.yml", *where],
        str(missing),
    )


def test_a_line_of_an_imglist_without_a_label(rejected, train, tmp_path):
    (tmp_path / "list.txt").write_text("digits/train/zero/0000.png 0\ndigits/train/zero/0001.png\n")
    rejected([*train, "--dataset.train.imglist_pth", tmp_path / "list.txt"], "list.txt:2: expected 'path label'")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_image(rejected, train, copy, split):
    name = store.read_imglist(copy / IMGLISTS / f"{split}.txt")[0][0]
    (copy / "images_classic" / name).unlink()
    lists = [f"--dataset.{split}.imglist_pth", copy / IMGLISTS / f"{split}.txt"]
    rejected([*train, "--data_root", copy, *lists], name, "is not there", f"dataset.{split}.imglist_pth")


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_a_broken_image(rejected, train, tiny, copy, content):
    name = store.read_imglist(copy / IMGLISTS / "train.txt")[3][0]
    path = copy / "images_classic" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    lists = ["--data_root", copy, "--dataset.train.imglist_pth", copy / IMGLISTS / "train.txt"]
    rejected([*train, *lists], f"{path}: broken image")
    rejected(["space", "--config", tiny.file, *lists], f"{path}: broken image")


@pytest.mark.parametrize("which", ["test_near_digits", "test_noise", "test"])
def test_a_broken_image_of_a_test_set(rejected, tiny, benchmarked, copy, tmp_path, which):
    path = copy / "images_classic" / store.read_imglist(copy / IMGLISTS / f"{which}.txt")[5][0]
    path.write_bytes(b"no image")
    layers = [tiny.file, "pipelines/test/test_ood.yml", "postprocessors/ebo.yml"]
    checkpoint = benchmarked.root / "runs" / "base" / "s0" / "best.ckpt"
    where = ["--output_dir", tmp_path / "new", "--data_root", copy, "--network.checkpoint", checkpoint]
    rejected(["evaluate", "--config", *layers, *where], f"{path}: broken image")


# ---------------------------------------------------------------------------------------------------------- the classes


def test_a_class_list_of_another_length_than_the_classes(rejected, tiny, tmp_path):
    config = ["anchors", "--config", tiny.file]
    rejected([*config, "--dream.class_names", "[a, b]"], "dream.class_names: ", "2 names for 6 classes")
    (tmp_path / "names.txt").write_text("zero\none\n")
    rejected([*config, "--dream.class_names", tmp_path / "names.txt"], "2 names for 6 classes")
    rejected([*config, "--dream.class_names", tmp_path / "none.txt"], "no such file", "expected one class name a line")
    rejected([*config, "--dream.class_names", "[a, a, b, c, d, e]"], "expected each entry once, got 'a' 2 times")


def test_labels_that_do_not_fit_the_class_list(rejected, train, tiny):
    fewer = ["--dataset.num_classes", "4", "--dream.class_names", "[zero, one, two, three]"]
    more = ["--dataset.num_classes", "7", "--dream.class_names", "[zero, one, two, three, four, five, six]"]
    rejected([*train, *fewer], "label 5 does not fit", "labels 0 to 3", "dataset.num_classes: 4")
    rejected(["space", "--config", tiny.file, *fewer], "label 5 does not fit")
    rejected(["space", "--config", tiny.file, *more], "dream.class_names: class 6 has no image")


def test_k_that_is_not_below_the_number_of_embeddings_of_a_class(rejected, tiny):
    for k in (30, 31, 5000):
        words = ["sample", "--config", tiny.file, "--dream.outliers.k", k]
        rejected(words, f"dream.outliers.k: {k} is not below 30", "embeddings of class", "lower k")


# ------------------------------------------------------------------------------------ generator, checkpoint and folders


def test_a_generator_folder_that_is_none(rejected, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("anchors", "synthesize"):
        words = [name, "--config", tiny.file, "--dream.generator"]
        rejected([*words, tmp_path / "empty"], "dream.generator: folder", "has no model_index.json")
        rejected([*words, tmp_path / "none"], "dream.generator: no folder", "expected a Stable Diffusion folder")
    rejected(
        ["anchors", "--config", tiny.file, "--dream.generator", "{train: large}"], "dream.generator.train", "'small'"
    )


def test_a_generator_that_cannot_be_loaded(command, tiny, tmp_path):
    (tmp_path / "folder").mkdir()
    index = dict.fromkeys(("unet", "vae", "tokenizer", "text_encoder"), ["transformers", "CLIPTextModel"])
    (tmp_path / "folder" / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline"} | index)
    )
    where = ["--dream.cache_dir", tmp_path / "cache", "--dream.generator", tmp_path / "folder"]
    done = command("anchors", "--config", tiny.file, *where)
    assert done.code == 2 and len(done.err) == 1 and "dream.generator: cannot load" in done.err[0]
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_or_foreign_checkpoint(rejected, tiny, tmp_path):
    layers = [tiny.file, "pipelines/test/test_ood.yml", "postprocessors/ebo.yml"]
    words = ["evaluate", "--config", *layers, "--output_dir", tmp_path / "new", "--network.checkpoint"]
    rejected([*words, tmp_path / "none.ckpt"], "none.ckpt: no such checkpoint (network.checkpoint)")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.ckpt")
    rejected([*words, tmp_path / "other.ckpt"], "other.ckpt: the weights do not fit the network")
    rejected([*words, tmp_path / "other.ckpt", "--postprocessor.name", "ebbo"], "unknown 'ebbo'; did you mean 'ebo'?")


def test_a_folder_that_cannot_be_written(rejected, tiny, benchmarked, tmp_path):
    (tmp_path / "file").write_text("in the way")  # stops root too, whom no permission stops
    root = tmp_path / "file" / "out"
    rejected(
        ["train", "--config", tiny.file, "benchmarks/methods/base.yml", "--root", root], str(root), "cannot write here"
    )
    rejected(["benchmark", "--config", tiny.file, "--root", root], str(root), "cannot write here")
    rejected(["anchors", "--config", tiny.file, "--root", root], str(root), "cannot write here")
    rejected(["quickstart", "--out", root], str(root), "cannot write here")
    runs = benchmarked.root / "runs"
    for fmt in ("md", "html"):
        rejected(["leaderboard", runs, "--format", fmt, "--out", root / "board"], str(root), "cannot write here")


def test_a_folder_without_runs(rejected, tmp_path):
    (tmp_path / "empty").mkdir()
    rejected(["leaderboard", tmp_path / "empty"], "empty: no ood.csv beneath it")


# ------------------------------------------------------------------------------------------------------ the quickstart


def test_options_of_the_quickstart(rejected, tmp_path):
    out = ["--out", tmp_path / "new"]
    rejected(["quickstart", *out, "--seeds", "9"], "--seeds: expected 1 to ", "got 9")
    rejected(["quickstart", *out, "--seeds", "0"], "--seeds: expected 1 to ", "got 0")
    rejected(
        ["quickstart", *out, "--methods", "base,dreamood"],
        "--methods: unknown method 'dreamood'",
        "did you mean 'dream_ood'?",
    )
    rejected(["quickstart", *out, "--methods", ","], "--methods")
