"""DREAM-ID learns from imagined inliers as from any other image of their class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.config import Config, InputError
from openood_dream.trainers import TRAINERS, get_trainer

OPTIMIZER = {"num_epochs": 1, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}


def batch(*labels: int) -> dict[str, torch.Tensor]:
    return {"data": torch.randn(len(labels), 3, 2, 2), "label": torch.tensor(labels)}


def trainer(inside: dict, inliers: dict, **options):
    config = Config(trainer={"name": "dream_id", **options}, optimizer=OPTIMIZER, precision="float32")
    return TRAINERS["dream_id"](nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), [inside], [inliers], config)


def test_the_loss_is_the_mean_cross_entropy_over_both_batches():
    inside, inliers = batch(0, 1, 2), batch(2, 0)
    one = trainer(inside, inliers)
    rows = [*zip(inside["data"], inside["label"]), *zip(inliers["data"], inliers["label"])]
    by_hand = sum(F.cross_entropy(one.net(x[None]), y[None]) for x, y in rows) / 5
    torch.testing.assert_close(one.terms(inside, inliers)["cross-entropy"], by_hand)


def test_with_a_ratio_inliers_take_the_place_of_a_share_of_the_batch():
    inside, inliers = batch(0, 1, 2, 0), batch(2, 0, 1, 1)
    one = trainer(inside, inliers, ratio=0.25)
    rows = [*zip(inside["data"], inside["label"])][:3] + [(inliers["data"][0], inliers["label"][0])]
    by_hand = sum(F.cross_entropy(one.net(x[None]), y[None]) for x, y in rows) / 4
    torch.testing.assert_close(one.terms(inside, inliers)["cross-entropy"], by_hand)


def test_an_image_without_a_class_is_refused():
    inside, outliers = batch(0, 1), batch(1, -1)
    with pytest.raises(InputError, match="label -1; the trainer dream_id needs inliers"):
        trainer(inside, outliers).train_epoch(1)


def config(name: str, method: str | None) -> Config:
    outliers = {"outliers": {"method": method}} if method else {}
    dream = {"class_names": ["a", "b"], "generator": "some/model", **outliers}
    return Config(trainer={"name": name}, dataset={"oe": {"imglist_pth": "imagined"}}, dream=dream)


@pytest.mark.parametrize(
    ("name", "method", "fits"),
    [
        ("dream_id", "inlier", True),
        ("dream_id", None, False),
        ("dream_id", "boundary", False),
        ("dream_ood", "inlier", False),
        ("dream_ood", "boundary", True),
        ("oe", None, True),
        ("base", "inlier", True),
    ],
)
def test_each_trainer_gets_imagined_images_of_its_kind(name, method, fits):
    if fits:
        assert get_trainer(config(name, method)) is TRAINERS[name]
    else:
        with pytest.raises(InputError, match=f"dream.outliers.method: the trainer {name} learns from"):
            get_trainer(config(name, method))


def test_other_auxiliary_images_are_not_judged_by_the_dream_section():
    mine = config("dream_id", "knn")
    mine.dataset.oe.imglist_pth = "my_inliers.txt"
    assert get_trainer(mine) is TRAINERS["dream_id"]
