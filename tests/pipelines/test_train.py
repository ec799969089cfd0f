"""Training a network: what a run leaves behind, when it is reused, and when it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers import equal, stamps, weights

from openood_dream.datasets import images
from openood_dream.datasets.imglist import read_imglist
from openood_dream.errors import InputError, InputWarning
from openood_dream.experiment import Experiment
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import get_network
from openood_dream.networks.features import accuracy
from openood_dream.pipelines import train as training
from openood_dream.store import files
from openood_dream.trainers.known import BaseTrainer, OutlierTrainer


@pytest.fixture
def base(tiny, tmp_path) -> Callable[..., Experiment]:
    """The tiny config of cross-entropy training, in a root of its own."""
    return lambda *overrides: tiny.method("base", "--root", str(tmp_path / "out"), *overrides)


def without(experiment: Experiment, *keys: str) -> Experiment:
    """The experiment without some keys."""
    values = experiment.to_dict()
    for key in keys:
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        del section[last]
    return Experiment(values)


def record(folder: Path) -> dict:
    return json.loads((folder / "train.json").read_text())


# ---------------------------------------------------------------------------------------------------------- the run


def test_run_folder(base):
    folder = training.train(base("--optimizer.num_epochs", "3"))
    history = record(folder)["epochs"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    last = f"last_epoch3_acc{history[-1]['val_acc'] / 100:.4f}.ckpt"
    names = {path.name for path in folder.iterdir()} - {"tensorboard"}  # which is written where it is installed
    assert names == {"config.yml", "best.ckpt", "train.json", last}
    assert yaml.safe_load((folder / "config.yml").read_text())["optimizer"]["num_epochs"] == 3
    net = get_network(base().network, image_size=16)
    load_weights(net, folder / "best.ckpt")
    found = accuracy(net, base().data.loader("dataset", "val"), torch.device("cpu"))
    assert 100 * found == pytest.approx(max(row["val_acc"] for row in history), abs=1e-6)


def test_folder_has_method_and_seed(base, tmp_path):
    assert training.train(base("--seed", "4")) == tmp_path / "out" / "runs" / "base" / "s4"


def test_finished_run_is_reused(base):
    folder = training.train(base())
    before = stamps(folder)
    assert training.train(base()) == folder and stamps(folder) == before


@pytest.mark.parametrize("method", ["base", "dream_ood"])
def test_finished_run_decodes_no_image(tiny, dream, tmp_path, monkeypatch, method):
    experiment = tiny.method(method, "--output_dir", str(tmp_path), "--dream.filter.duplicates", "true")
    training.train(experiment)
    states: list[str] = []
    state = files._state
    monkeypatch.setattr(files, "_state", lambda path: states.append(path) or state(path))
    monkeypatch.setattr(images, "read_image", lambda *args: pytest.fail("decoded an image"))
    stat = files.os.stat
    looked: list[str] = []
    monkeypatch.setattr(files.os, "stat", lambda path, **options: looked.append(str(path)) or stat(path, **options))
    training.train(experiment.changed({}))
    seen = [path for path in looked if path.endswith(".png")]
    assert seen and len(seen) == len(set(seen)), "each image is looked at once"


@pytest.mark.parametrize(
    "change, key",
    [
        (("--optimizer.lr", "0.05"), "optimizer.lr"),
        (("--network.args.channels", "[8, 8, 8, 8]"), "network.args.channels"),
        (("--dataset.train.batch_size", "17"), "dataset.train.batch_size"),
        (("--dataset.normalization_type", "cifar10"), "dataset.normalization_type"),
        (("--preprocessor.horizontal_flip", "true"), "preprocessor.horizontal_flip"),
        (("--dataset.train.imglist_pth", "@{dataset.val.imglist_pth}"), "dataset.train"),
        (("--optimizer.lr", "0.05", "--merge_option", "merge"), "optimizer.lr"),
    ],
)
def test_another_run_is_refused(base, change, key):
    folder = training.train(base())
    before = stamps(folder)
    with pytest.raises(InputError, match=rf"{key}.*: {folder} holds a run .*; choose another --output_dir"):
        training.train(base(*change))
    assert stamps(folder) == before


def test_another_imagination_is_refused_before_it_is_made(tiny, dream, tmp_path):
    here = ("--output_dir", str(tmp_path))
    training.train(tiny.method("dream_ood", *here))
    made = set(Path(dream.settings.cache_dir).iterdir())
    with pytest.raises(
        InputError, match=r"command line: dream\.outliers\.sigma: .* holds a run with 0\.\d+, not 0\.3;"
    ):
        training.train(tiny.method("dream_ood", *here, "--dream.outliers.sigma", "0.3"))
    assert set(Path(dream.settings.cache_dir).iterdir()) == made


def test_settings_without_a_say_leave_the_run_as_it_is(tiny, dream, tmp_path):
    here = ("--output_dir", str(tmp_path))
    folder = training.train(tiny.method("dream_ood", *here))
    before = stamps(folder)
    assert training.train(tiny.method("dream_ood", *here, "--dream.quality.k", "2")) == folder
    assert stamps(folder) == before


def test_weights_of_another_program(base):
    (folder := base().run.folder).mkdir(parents=True)
    (folder / "best.ckpt").write_bytes(b"theirs")
    with pytest.raises(InputError, match=rf"{folder}: "):
        training.train(base("--merge_option", "merge"))
    assert (folder / "best.ckpt").read_bytes() == b"theirs"


def test_the_remedy_that_is_offered_works(base):
    folder = training.train(base())
    shutil.rmtree(folder)
    assert training.train(base("--optimizer.num_epochs", "2")) == folder
    assert yaml.safe_load((folder / "config.yml").read_text())["optimizer"]["num_epochs"] == 2


def test_interrupted_run_goes_on(base, tmp_path, monkeypatch):
    expected = weights(training.train(base("--optimizer.num_epochs", "2", "--output_dir", str(tmp_path / "whole"))))
    epoch = BaseTrainer.train_epoch

    def interrupted(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BaseTrainer, "train_epoch", interrupted)
        training.train(base("--optimizer.num_epochs", "2"))
    with pytest.raises(InputError, match="holds a run with"):
        training.train(base("--optimizer.num_epochs", "2", "--optimizer.lr", "0.05"))
    assert equal(weights(training.train(base("--optimizer.num_epochs", "2"))), expected)


def test_seed_decides_weights(base, tmp_path):
    first = weights(training.train(base()))
    torch.rand(7)  # whatever ran before
    again = weights(training.train(base("--output_dir", str(tmp_path / "again"))))
    other = weights(training.train(base("--seed", "1")))
    assert equal(first, again) and not equal(first, other)


# ------------------------------------------------------------------------------------------------------------ config


def test_base_needs_no_dream(base):
    assert (training.train(without(base(), "dream")) / "best.ckpt").exists()


@pytest.mark.parametrize("key", ["optimizer.lr", "dataset.val", "dataset.train.batch_size", "output_dir", "network"])
def test_missing_key(base, key):
    with pytest.raises(InputError, match=rf"{key}: missing"):
        training.train(without(base(), key))


@pytest.mark.parametrize("key", ["num_classes", "image_size", "pre_size"])
@pytest.mark.parametrize("value", ["six", "0", "2.5", "true"])
def test_sizes_are_whole_numbers(base, key, value):
    with pytest.raises(InputError, match=rf"\.{key}: expected an integer >= 1"):
        base(f"--dataset.{key}", value)


def test_unknown_trainer(base):
    with pytest.raises(InputError, match=r"trainer\.name: .*'basic'"):
        training.train(base("--trainer.name", "basic"))


# ------------------------------------------------------------------------------------------------------ outlier data


def test_auxiliary_images_are_augmented(tiny):
    """In OpenOOD's outlier exposure they get the transforms of tests."""
    experiment = tiny.method("oe")
    found = training.outlier_data(experiment, training.check_training(experiment)).loader.dataset
    assert found.augment and len(found) == 800 and set(found.labels.tolist()) == {-1}


def test_imagined_images_are_those_of_the_dream(tiny, dream):
    experiment = tiny.method("dream_ood")
    found = training.outlier_data(experiment, training.check_training(experiment))
    assert found.identity == dream.images.hash
    assert found.loader.dataset.rows == read_imglist(dream.images.path / "imglist.txt")
    assert experiment.at("dataset.oe.imglist_pth") == "imagined", "nothing is written into a config"


def test_training_sees_the_imagined_images(tiny, dream, tmp_path, monkeypatch):
    seen = set()
    batches = OutlierTrainer.batches

    def watched(self):
        for id_batch, outlier_batch in batches(self):
            seen.update(outlier_batch["image_name"])
            yield id_batch, outlier_batch

    monkeypatch.setattr(OutlierTrainer, "batches", watched)
    training.train(tiny.method("dream_ood", "--output_dir", str(tmp_path)))
    assert seen == {name for name, _ in read_imglist(dream.images.path / "imglist.txt")}


@pytest.mark.parametrize("method, label", [("base", "none"), ("oe", "train_aux"), ("dream_ood", "imagined (knn)")])
def test_record_names_the_outlier_data(benchmarked, method, label):
    assert record(benchmarked.root / "runs" / method / "s0")["outlier_data"] == label


def test_a_list_of_imagined_images_is_called_what_it_is(tiny, dream):
    folders = {dream.images.path, dream.quality.path}
    lists = [str(folder / "imglist.txt") for folder in folders]
    found = {training.outlier_label(tiny.method("dream_ood", "--dataset.oe.imglist_pth", one)) for one in lists}
    assert found == {"imagined (knn)"}


def test_what_is_doubtful_is_recorded_and_said_again(base, monkeypatch):
    monkeypatch.setattr(BaseTrainer, "remarks", lambda self: ["no step had outliers"])
    for _ in range(2):  # the second time the finished run is reused
        with pytest.warns(InputWarning, match="base/s0: no step had outliers"):
            folder = training.train(base())
    assert record(folder)["warnings"] == ["no step had outliers"]


def test_doubts_about_imagined_images_are_recorded(tiny, dream, tmp_path, monkeypatch):
    monkeypatch.setitem(dream.space.manifest, "warnings", ["the space is at chance"])
    experiment = tiny.method("dream_ood", "--output_dir", str(tmp_path))
    monkeypatch.setattr(type(experiment), "imagination", dream)
    assert "the space is at chance" in record(training.train(experiment))["warnings"]


def test_other_outliers_make_another_run(tiny, dream, tmp_path):
    where = ["--output_dir", str(tmp_path)]
    training.train(tiny.method("dream_ood", *where))
    with pytest.raises(InputError, match="holds a run with"):
        training.train(tiny.method("dream_ood", *where, "--dream.synthesis.per_class", "1"))


def test_kind_of_imagined_images_must_fit(tiny):
    with pytest.raises(InputError, match=r"dream\.outliers\.method: the trainer dream_ood learns from outliers"):
        training.train(tiny.method("dream_ood", "--dream.outliers.method", "inlier"))


def test_oal_trains_its_teacher_once(tiny, dream, tmp_path):
    teacher = "{network: 'timm:resnet10t', args: {channels: [8, 8, 8, 8]}, epochs: 1}"
    layer = tmp_path / "oal.yml"
    layer.write_text(f"trainer: {{name: oal, teacher: {teacher}}}\n")
    experiment = tiny.config("--output_dir", str(tmp_path / "oal"), layers=[str(layer)])
    found = record(training.train(experiment))
    assert found["outlier_data"] == "teacher, latents at random"
    assert found["inputs"]["outliers"][1] == dream.latents(300).hash
    teachers = [path.parent for path in Path(experiment.dream.cache_dir).glob("teacher-*/best.ckpt")]
    before = [stamps(folder) for folder in teachers]
    training.train(experiment.changed({"output_dir": str(tmp_path / "oal1"), "seed": 1}))
    assert [path.parent for path in Path(experiment.dream.cache_dir).glob("teacher-*/best.ckpt")] == teachers
    assert teachers and [stamps(folder) for folder in teachers] == before
