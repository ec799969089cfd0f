"""A run that judges images: its scores are those of the evaluation, and its threshold is kept."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import stamps
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import openood_dream
from openood_dream.errors import InputError, InputWarning
from openood_dream.evaluators.verdicts import find_threshold
from openood_dream.networks.generative.network import Generative
from openood_dream.pipelines import detector as detecting
from openood_dream.pipelines.detector import Detector
from openood_dream.pipelines.test import score_run
from openood_dream.pipelines.test import test as score
from openood_dream.reports.runs import read_scores
from openood_dream.store import files, tensors

NAMES = ["msp", "ebo", "knn", "mds", "odin", "react", "temperature_scaling", "gradnorm"]


@pytest.fixture
def config(tiny):
    """The tiny config that scores with a detector; it searches hyperparameters where the overrides say so."""

    def experiment(name: str, *overrides: str):
        layers = ["benchmarks/methods/base.yml", f"postprocessors/{name}.yml"]
        return tiny.config("--postprocessor.APS_mode", "false", *overrides, layers=layers)

    return experiment


@pytest.fixture(scope="session")
def trained(benchmarked, tmp_path_factory) -> Path:
    """A finished run of the benchmark, to be scored with more detectors."""
    folder = tmp_path_factory.mktemp("trained") / "s0"
    shutil.copytree(benchmarked.root / "runs" / "base" / "s0", folder)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it, to write in."""
    return Path(shutil.copytree(trained, tmp_path / "s0"))


def paths(experiment, *which: str) -> list[Path]:
    images = experiment.data.images(*which)
    return [images.data_dir / name for name, _ in images.rows]


def val_scores(run: Path, name: str, experiment) -> np.ndarray:
    return Detector.load(run, name)(paths(experiment, "dataset", "val")).scores


# --------------------------------------------------------------------------------------------------------- the scores


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_evaluation(trained, config, name):
    experiment = config(name)
    score_run(trained, [experiment], experiment.data)
    detector = Detector.load(trained, name)
    for which, file in ((("dataset", "test"), "digits"), (("ood_dataset", "farood", "scrambled"), "scrambled")):
        found = detector(paths(experiment, *which))
        pred, conf, _ = read_scores(trained / name / "scores" / f"{file}.npz")
        assert np.array_equal(found.scores, conf) and np.array_equal(found.labels, pred)


def test_searched_hyperparameters_are_those_of_the_evaluation(run, config, monkeypatch):
    shutil.rmtree(run / "knn")
    experiment = config(
        "knn", "--postprocessor.APS_mode", "true", "--postprocessor.postprocessor_sweep.K_list", "[3, 9]"
    )
    score_run(run, [experiment], experiment.data)
    detector = Detector.load(run / "knn")
    found, test = detector(paths(experiment, "dataset", "test")), read_scores(run / "knn" / "scores" / "digits.npz")
    assert detector.name == "knn" and np.array_equal(found.scores, test[1])
    chosen = json.loads((run / "detectors" / "knn.json").read_text())["args"]["K"]
    assert chosen in (3, 9) and f"K {chosen}" in found.summary()
    monkeypatch.setattr(detecting, "best_on_validation", lambda *_: pytest.fail("searched again"))
    again = Detector.load(run, "knn")(paths(experiment, "dataset", "test"))
    assert np.array_equal(again.scores, found.scores)


@pytest.mark.parametrize("name", ["ebo", "odin"])
def test_scores_do_not_depend_on_how_images_are_given(run, config, name, monkeypatch):
    detector, files = Detector.load(run, name), paths(config(name), "dataset", "test")[:120]
    expected = detector(files)
    images = [Image.open(path) for path in files]
    pixels = torch.stack([pil_to_tensor(image.convert("RGB")) for image in images])
    given = [images, pixels, pixels.float() / 255, pixels[:, :1].double() / 255, list(pixels), iter(map(str, files))]
    for one in given:
        assert np.array_equal(detector(one).scores, expected.scores), type(one)
    monkeypatch.setattr(detecting, "BYTES", 1)  # a batch at a time
    assert np.array_equal(detector(files).scores, expected.scores)
    alone = detector(pixels[0])
    assert alone.images == ("0",) and alone.scores[0] == pytest.approx(expected.scores[0], rel=1e-5)


@pytest.mark.slow
def test_a_generative_network(tiny, tmp_path):
    sizes = ["--network.latent", "4", "--network.width", "4", "--network.channels", "1"]
    experiment = tiny.config(
        *[*sizes, "--dataset.image_size", "8", "--dataset.pre_size", "8", "--network.frequency", "false"],
        *["--output_dir", str(tmp_path), "--exp_name", "scored", "--network.checkpoint", str(tmp_path / "a.ckpt")],
        layers=["networks/vae_small.yml", "postprocessors/likelihood.yml"],
    )
    torch.manual_seed(0)
    tensors.write_checkpoint(tmp_path / "a.ckpt", Generative(experiment.network).state_dict())
    out = score(experiment)
    found = Detector.load(out)(paths(experiment, "dataset", "test"))
    assert np.array_equal(found.scores, read_scores(out / "scores" / "digits.npz")[1])
    assert set(found.labels.tolist()) == {-1} and set(found.classes) == {""}
    with pytest.raises(InputError, match="ebo scores classifiers"):
        Detector.load(out, "ebo")


# ------------------------------------------------------------------------------------------------------ the threshold


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.95, 0.999])
def test_threshold_is_the_largest_that_enough_reach(keep):
    scores = np.random.default_rng(0).normal(size=137).round(1)  # with equal ones among them
    found = find_threshold(scores, keep)
    fit = [score for score in scores if np.mean(scores >= score) >= keep]
    assert found == max(fit)


def test_threshold_of_round_shares():
    assert find_threshold(np.arange(100.0), 0.55) == 45.0
    assert find_threshold(np.arange(20.0), 0.95) == 1.0
    with pytest.raises(ValueError, match="no finite threshold"):
        find_threshold(np.array([-math.inf, -math.inf, 1.0]), 0.9)


def test_threshold_keeps_its_share_of_the_validation_images(run, config):
    scores = val_scores(run, "ebo", config("ebo"))
    detector = Detector.load(run)
    assert (detector.name, detector.keep) == ("ebo", 0.95)
    assert np.mean(scores >= detector.threshold) >= 0.95 > np.mean(scores > detector.threshold)
    assert Detector.load(run, keep=0.5).threshold == sorted(scores)[-math.ceil(len(scores) / 2)]


def test_threshold_is_found_once(run, monkeypatch):
    first = Detector.load(run).threshold
    other = Detector.load(run, keep=0.8).threshold
    record = json.loads((run / "detectors" / "ebo.json").read_text())
    assert record["thresholds"] == {"0.95": first, "0.8": other} and other > first
    before = stamps(run)
    monkeypatch.setattr(detecting, "score_set", lambda *_: pytest.fail("found anew"))
    assert Detector.load(run).threshold == first and Detector.load(run, keep=0.8).threshold == other
    assert stamps(run) == before


def test_threshold_of_other_weights_is_found_anew(run, benchmarked):
    first = Detector.load(run, keep=0.9).threshold
    shutil.copy(benchmarked.root / "runs" / "oe" / "s0" / "best.ckpt", run / "best.ckpt")
    second = Detector.load(run, keep=0.95).threshold
    record = json.loads((run / "detectors" / "ebo.json").read_text())
    assert record["thresholds"] == {"0.95": second} and second != first


@pytest.mark.parametrize(
    "change, words",
    [
        ("[1]", "expected a mapping"),
        ("{", "not readable JSON"),
        ({"thresholds": {"0.95": "low"}}, r"thresholds\.0\.95: expected a number"),
        ({"thresholds": {"0.95": math.nan}}, r"thresholds\.0\.95: expected a number"),
        ({"args": {"temperature": -1}}, "args: .*temperature"),
        ({"images": None}, "images: "),
    ],
)
def test_a_damaged_record_is_named(run, change, words):
    Detector.load(run)
    path = run / "detectors" / "ebo.json"
    text = change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(InputError, match=rf"ebo\.json: {words}.*delete it and run again"):
        Detector.load(run)
    path.unlink()
    Detector.load(run)


def moved(run: Path, split: str) -> None:
    """Has the run's config name a list that is not there."""
    values = yaml.safe_load((run / "config.yml").read_text())
    values["dataset"][split]["imglist_pth"] = "/gone.txt"
    (run / "config.yml").write_text(yaml.safe_dump(values))


def test_a_run_without_its_images(run, config, monkeypatch):
    """A record is enough where nothing is to be learned from images."""
    image, threshold = paths(config("ebo"), "dataset", "test")[0], Detector.load(run).threshold
    moved(run, "val")
    with pytest.warns(InputWarning, match=r"ebo\.json: the lists of the run are not there"):
        assert Detector.load(run)(image).threshold == threshold
    for name, keep in (("knn", 0.95), ("ebo", 0.9)):
        with pytest.raises(InputError, match=r"/gone\.txt: no such image list"):
            Detector.load(run, name, keep)


def test_a_run_that_cannot_be_written_in(run, monkeypatch):
    threshold = Detector.load(run).threshold
    shutil.rmtree(run / "detectors")
    before = stamps(run)

    def refused(folder: Path) -> Path:
        raise InputError(f"{folder}: cannot write here (Read-only file system); choose another folder")

    monkeypatch.setattr(files, "writable", refused)
    with pytest.warns(InputWarning, match="s0: cannot write here"):
        assert Detector.load(run).threshold == threshold
    assert stamps(run) == before


# ----------------------------------------------------------------------------------------------------------- the run


def test_scores_of_another_training(run):
    record = json.loads((run / "train.json").read_text())
    (run / "train.json").write_text(json.dumps(record | {"hash": "0" * 16}))
    with pytest.raises(InputError, match="msp: has scores of another training"):
        Detector.load(run / "msp")


def test_class_names_and_a_run_without(run, config):
    image = paths(config("ebo"), "dataset", "test")[0]
    detector = Detector.load(run)
    assert detector.class_names == ("zero", "one", "two", "three", "four", "five")
    (name,) = detector(image).classes
    values = yaml.safe_load((run / "config.yml").read_text())
    del values["dream"]
    (run / "config.yml").write_text(yaml.safe_dump(values))
    found = Detector.load(run)(image)
    assert found.classes == (str(found.labels[0]),) and name == detector.class_names[found.labels[0]]


@pytest.mark.parametrize("keep", [0, 1, -0.1, 1.5, math.nan, True, "0.9"])
def test_keep_is_a_share(run, keep):
    with pytest.raises(InputError, match="keep: expected a share above 0 and below 1"):
        Detector.load(run, keep=keep)


def test_the_door_has_it():
    assert openood_dream.Detector is Detector
