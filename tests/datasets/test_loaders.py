"""The data of a config: lists opened once, loaders in order or shuffled, and mistakes named by their keys."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from openood_dream.config.schema import validated
from openood_dream.datasets import images
from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.datasets.loaders import Data
from openood_dream.datasets.settings import DatasetSettings, OODDatasetSettings, PreprocessorSettings
from openood_dream.errors import InputError


def settings(digits: Path) -> dict[str, dict[str, Any]]:
    """The sections of a config of the digits benchmark."""

    def split(name: str, **more: Any) -> dict[str, Any]:
        lists, folder = digits / "benchmark_imglist" / "digits", digits / "images_classic"
        return {"imglist_pth": str(lists / f"{name}.txt"), "data_dir": str(folder), **more}

    dataset = {"name": "digits", "num_classes": 6, "pre_size": 16, "image_size": 16, "make": "digits"}
    dataset |= {name: split(name, batch_size=64) for name in ("train", "val", "test")}
    return {
        "dataset": dataset,
        "preprocessor": {"horizontal_flip": False},
        "ood_dataset": {
            "batch_size": 100,
            "val": split("val_turned"),
            "nearood": {"datasets": ["near_digits"], "near_digits": split("test_near_digits")},
            "farood": {
                "datasets": ["scrambled", "flower"],
                "flower": split("test_flower"),
                "scrambled": split("test_scrambled"),
            },
            "csid": {"datasets": ["rotated"], "rotated": split("test_rotated")},
        },
    }


def make_data(config: dict[str, dict[str, Any]], root: str | Path = "data") -> Data:
    ood = validated(OODDatasetSettings, config["ood_dataset"], ("ood_dataset",)) if "ood_dataset" in config else None
    return Data(
        validated(DatasetSettings, config["dataset"], ("dataset",)),
        validated(PreprocessorSettings, config["preprocessor"], ("preprocessor",)),
        ood,
        root,
    )


@pytest.fixture
def config(digits) -> dict[str, dict[str, Any]]:
    return settings(digits)


@pytest.fixture
def data(config) -> Data:
    return make_data(config)


def test_transform_is_that_of_the_config(data, config):
    assert data.transform == images.Transform(16, 16, flip=False)
    config["dataset"] |= {"name": "imagenet200", "interpolation": "bicubic", "normalization_type": "imagenet"}
    config["preprocessor"] = {"name": "randaugment", "n": 2, "m": 14, "random_crop": False}
    expected = images.Transform(16, 16, "imagenet", "bicubic", True, False, True, (2, 14))
    assert make_data(config).transform == expected


def test_lists_are_opened_once(data):
    which = ("ood_dataset", "nearood", "near_digits")
    assert data.images(*which) is data.images(*which) and data.images(*which).key == ".".join(which) + ".imglist_pth"
    assert data.identity(*which) == data.images(*which).identity != data.identity("dataset", "test")


def test_loaders_shuffle_for_training_by_the_seed_and_never_for_tests(data):
    def order(augment: bool, seed: int) -> list[int]:
        torch.manual_seed(seed)
        return torch.cat([batch["index"] for batch in data.loader("dataset", "train", augment=augment)]).tolist()

    count = len(order(False, 0))
    assert order(False, 0) == list(range(count))
    assert order(True, 0) == order(True, 0) != order(True, 1)
    assert sorted(order(True, 0)) == list(range(count))


def test_batch_sizes_are_those_of_split_and_group(data):
    assert data.loader("dataset", "val").batch_size == 64
    assert data.loader("dataset", "val", batch_size=7).batch_size == 7
    assert data.loader("ood_dataset", "farood", "flower").batch_size == 100


def test_augmented_loader_decodes_no_image_again(data, monkeypatch):
    for _ in data.loader("dataset", "val"):
        pass
    monkeypatch.setattr(images, "read_image", lambda *args: pytest.fail("decoded an image again"))
    assert sum(len(batch["label"]) for batch in data.loader("dataset", "val", augment=True)) == len(
        data.images("dataset", "val")
    )


def test_sets_come_group_by_group_as_the_config_lists_them(data):
    found = [(*which, len(data.images("ood_dataset", *which))) for which in data.ood_sets()]
    assert found == [("nearood", "near_digits", 714), ("farood", "scrambled", 400), ("farood", "flower", 400)]
    assert len(data.images("ood_dataset", "val")) == 144 and data.csid_sets() == ["rotated"]


def test_a_config_without_shifted_sets_has_none(config):
    del config["ood_dataset"]["csid"]
    assert make_data(config).csid_sets() == []


def test_ensure_writes_the_built_in_benchmark(tmp_path, config, digits):
    make_data(config, tmp_path / "new").ensure()
    lists = "benchmark_imglist/digits/train.txt"
    assert read_imglist(tmp_path / "new" / lists) == read_imglist(digits / lists)
    config["dataset"]["make"] = None
    make_data(config, tmp_path / "other").ensure()
    assert not (tmp_path / "other").exists()


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("label", [6, -1])
@pytest.mark.parametrize("which", [("dataset", "train"), ("dataset", "test"), ("ood_dataset", "csid", "rotated")])
def test_label_that_is_no_class_is_named(tmp_path, config, digits, label, which):
    rows = read_imglist(digits / "benchmark_imglist/digits/train.txt")[:20]
    write_imglist(tmp_path / "bad.txt", [*rows, (rows[0][0], label)])
    section = config
    for key in which:
        section = section[key]
    section["imglist_pth"] = str(tmp_path / "bad.txt")
    with pytest.raises(InputError, match=rf"bad\.txt: label {label} .*0 to 5"):
        make_data(config).images(*which)


@pytest.mark.parametrize(
    "which",
    [
        ("dataset", "oe"),
        ("ood_dataset", "val"),
        ("ood_dataset", "nearood", "near_digits"),
        ("ood_dataset", "farood", "textures"),
    ],
)
def test_missing_section_is_named(config, which):
    del config["ood_dataset"]["val"], config["ood_dataset"]["nearood"]
    with pytest.raises(InputError, match=r"\.".join(which[:2])):
        make_data(config).split(*which)


def test_missing_group_and_ood_dataset_are_named(config):
    near = ("ood_dataset", "nearood")
    config["ood_dataset"] = {"batch_size": 2}
    with pytest.raises(InputError, match=r"ood_dataset: no test sets"):
        make_data(config).ood_sets()
    with pytest.raises(InputError, match=r"ood_dataset\.nearood: missing"):
        make_data(config).images(*near, "near")
    del config["ood_dataset"]
    with pytest.raises(InputError, match=r"ood_dataset: missing"):
        make_data(config).ood_sets()


def test_groups_of_ones_own_and_only_one_of_openoods(config):
    group = config["ood_dataset"].pop("farood")
    config["ood_dataset"]["mine"] = group
    assert {name for name, _ in make_data(config).ood_sets()} == {"nearood", "mine"}
    assert make_data(config).images("ood_dataset", "mine", group["datasets"][0])


@pytest.mark.parametrize("size, kept", [(9, [4, 4]), (10, [4, 4, 2]), (1, [1])])
def test_a_last_batch_of_one_image_is_left_out_of_training(config, size, kept):
    found = copy.copy(make_data(config).images("dataset", "train"))
    found.rows = found.rows[:size]
    assert [len(batch) for batch in images.loader(found, 4, shuffle=True).batch_sampler] == kept


@pytest.mark.parametrize("which", [("dataset", "train"), ("ood_dataset", "val")])
def test_missing_batch_size_is_named(config, which):
    del config["dataset"]["train"]["batch_size"], config["ood_dataset"]["batch_size"]
    with pytest.raises(InputError, match=r"(dataset\.train|ood_dataset)\.batch_size: missing"):
        make_data(config).loader(*which)


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("preprocessor", "n", 0),
        ("preprocessor", "n", "two"),
        ("preprocessor", "n", None),
        ("preprocessor", "m", 31),
        ("preprocessor", "m", 1.5),
        ("preprocessor", "horizontal_flip", "no"),
        ("dataset", "make", "digitz"),
        ("dataset", "interpolation", "cubic"),
        ("dataset", "pre_size", 0),
        ("dataset.train", "data_dir", 3),
        ("ood_dataset.nearood", "datasets", []),
    ],
)
def test_impossible_values_are_named(config, section, key, value):
    config["preprocessor"] = {"name": "randaugment", "n": 2, "m": 14}
    place = config
    for part in section.split("."):
        place = place[part]
    place[key] = value
    with pytest.raises(InputError, match=re.escape(f"{section}.{key}: ")):
        make_data(config).transform  # noqa: B018
