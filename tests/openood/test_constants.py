"""Shipped files have the numbers of the papers and of the authors' codes; numbers here are written by hand, from there."""

from __future__ import annotations

import pytest
import yaml

from openood_dream.config.files import shipped_configs
from openood_dream.experiment import load_config

TRAIN = "pipelines/train"
PUBLISHED = yaml.safe_load((shipped_configs() / "published.yml").read_text(encoding="utf-8"))


def config(dataset: str, *files: str):
    return load_config([f"datasets/{dataset}/{dataset}.yml", "networks/timm_resnet18.yml", *files])


@pytest.mark.parametrize("name, epochs, batch", [("code", 200, 256), ("paper", 100, 160)])
def test_dream_ood_on_cifar100(name, epochs, batch):
    """DREAM-OOD's script for CIFAR-100, and its Sec. 4.1."""
    found = config("cifar100", f"{TRAIN}/dream_ood_cifar100_{name}.yml", "preprocessors/dream.yml")
    optimizer, trainer, outliers = found.optimizer, found.trainer, found.dream.outliers
    assert (optimizer.num_epochs, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (epochs, 0.1, 0.9, 5e-4)
    assert (found.dataset.split("train").batch_size, found.dataset.split("oe").batch_size) == (batch, batch)
    assert (trainer.loss, trainer.beta) == ("energy", 2.5)
    assert (outliers.k, outliers.sigma, outliers.select, outliers.n_boundary) == (300, 0.07, 50, 50)
    assert (outliers.n_draws, outliers.keep, outliers.rounds) == (1500, 2, 100)
    assert (found.dream.space.epochs, found.dream.space.temperature, found.dream.space.per_class) == (200, 0.1, 500)


def test_dream_ood_on_imagenet100():
    """DREAM-OOD, Sec. 4.1."""
    found = config("imagenet100", f"{TRAIN}/dream_ood_imagenet.yml", "preprocessors/dream.yml")
    outliers = found.dream.outliers
    assert (found.trainer.beta, found.dataset.split("train").batch_size, found.dream.space.epochs) == (1.0, 160, 100)
    assert (outliers.k, outliers.sigma, outliers.select, outliers.n_boundary) == (300, 0.03, 200, 50)
    assert (outliers.n_draws, outliers.keep, outliers.rounds) == (1500, 2, 100)


def test_dream_id_on_imagenet100():
    """DREAM-OOD, Sec. 4.3."""
    found = config("imagenet100", f"{TRAIN}/dream_id_imagenet100.yml", "preprocessors/dream.yml").dream
    outliers = found.outliers
    assert (outliers.method, outliers.k, outliers.sigma, outliers.select) == ("inlier", 300, 0.01, 1000)
    assert (outliers.n_boundary, outliers.n_draws, outliers.keep, outliers.rounds) == (100, 1500, 1, 100)
    assert found.space.per_class == 1000


def test_baselines():
    """OpenOOD's numbers, and VOS's own first epoch with outliers."""
    assert config("cifar10", f"{TRAIN}/oe.yml", "datasets/cifar10/cifar10_oe.yml").trainer.lambda_oe == 0.5
    vos = config("cifar10", f"{TRAIN}/vos.yml").trainer
    assert (vos.sample_number, vos.sample_from, vos.select, vos.loss_weight) == (1000, 10_000, 1, 0.1)
    assert vos.start_epoch == 40
    npos = config("cifar10", f"{TRAIN}/npos.yml")
    a, optimizer = npos.trainer.trainer_args, npos.optimizer
    assert (a.w_disp, a.w_comp, a.temp, a.proto_m, a.K, a.cov_mat) == (0.5, 1.0, 0.1, 0.95, 300, 0.1)
    assert (a.select, a.pick_nums, a.sample_from, a.ID_points_num) == (200, 2, 600, 200)
    assert (a.sample_number, a.start_epoch_KNN, a.loss_weight) == (1000, 40, 0.1)
    assert (optimizer.lr, optimizer.weight_decay, optimizer.warm_up, optimizer.num_epochs) == (0.1, 1e-4, 10, 100)
    assert (npos.preprocessor.views, npos.dataset.split("train").batch_size) == (2, 256)
    assert npos.at("optimizer.mlp_decay_rate") == 0.1  # OpenOOD's trainer ends in a traceback without


@pytest.mark.parametrize(
    "dataset, method, postprocessor, numbers",
    [
        ("cifar10", "OAL", "ebo", (92.99, 96.28, 94.71)),
        ("cifar100", "OAL", "ebo", (82.03, 84.03, 76.89)),
        ("cifar10", "OE", "msp", (94.82, 96.00, 94.63)),
        ("cifar100", "OE", "msp", (88.30, 81.41, 76.84)),
        ("cifar100", "VOS", "ebo", (80.93, 81.32, 77.20)),
        ("cifar100", "CrossEntropy", "ebo", (80.91, 79.77, 77.25)),
    ],
)
def test_leaderboard(dataset, method, postprocessor, numbers):
    """OpenOOD's leaderboard."""
    (row,) = [one for one in PUBLISHED if (one["dataset"], one["method"]) == (dataset, method)]
    assert row["postprocessor"] == postprocessor
    assert (row["near_auroc"], row["far_auroc"], row["id_acc"]) == numbers


@pytest.mark.parametrize(
    "dataset, method, fpr95, auroc",
    [
        ("cifar100", "DREAM-OOD", 40.31, 90.15),
        ("cifar100", "BOOD", 10.67, 97.42),
        ("imagenet100", "DREAM-OOD", 38.76, 92.02),
        ("imagenet100", "CIDER", 25.90, 94.46),
    ],
)
def test_averages_name_their_sets(dataset, method, fpr95, auroc):
    (row,) = [one for one in PUBLISHED if one["dataset"] == dataset and one["method"] == method]
    assert (row["average"]["fpr95"], row["average"]["auroc"]) == (fpr95, auroc)
    assert len(row["average"]["sets"]) >= 4 and row["source"]
