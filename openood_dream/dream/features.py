"""A classifier's features in the place of the space: OAL samples its outliers around those of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openood_dream.datasets.images import ImageList, loader
from openood_dream.device import pick_device
from openood_dream.dream.outliers import make_outliers
from openood_dream.dream.settings import DreamSettings
from openood_dream.dream.space import BATCH, first_per_class, unit_embeddings
from openood_dream.errors import InputError
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import write_tensors


class Features(nn.Module):
    """Images (B, 3, S, S) -> what the last layer of a classifier gets (B, D).

    Args:
        net: a classifier in OpenOOD's protocol.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, return_feature=True)[1]


def make_features(
    net: nn.Module,
    weights: str,
    train: ImageList,
    names: Sequence[str],
    cache_dir: str | Path,
    *,
    per_class: int,
    seed: int,
    device: str = "auto",
    workers: int = 0,
) -> Artifact:
    """Unit features of ID images, and the means of the classes in the place of anchors: what `make_outliers` takes as both.

    Args:
        net: a trained classifier in OpenOOD's protocol.
        weights: sha256 of its weights.
        train: the ID training images, without augmentation.
        names: the class names.
        cache_dir: folder of all artifacts.
        per_class: features of a class, of random images.
        seed: seed of that choice.
        device: where the network runs: auto, cpu, mps, cuda or cuda:N.
        workers: processes that decode images where they do not fit into memory.

    Returns:
        The artifact: `embeddings.safetensors` with `embeddings` (N, D), `labels` (N,) and `rows` (N,), as of a space;
        `anchors.safetensors` with `anchors` (C, D).

    Raises:
        InputError: a feature is not finite.
    """
    inputs = {
        "weights": weights,
        "train": train.identity,
        "transform": train.transform.test_identity,
        "per_class": per_class,
        "seed": seed,
    }

    def make(folder: Path) -> dict[str, Any]:
        rows = first_per_class(train.labels, per_class, seed)
        batches = loader(train, BATCH, shuffle=False, workers=workers)
        found = unit_embeddings(Features(net), batches, pick_device(device), "features: embedding")[rows]
        if not torch.isfinite(found).all():
            raise InputError("trainer.teacher: a feature is not finite; its training failed: lower trainer.teacher.lr")
        labels = train.labels[rows]
        means = torch.zeros(len(names), found.shape[1]).index_add_(0, labels, found)
        write_tensors(folder / "embeddings.safetensors", embeddings=found, labels=labels, rows=rows)
        write_tensors(folder / "anchors.safetensors", anchors=F.normalize(means, dim=1))
        return {"per_class": torch.bincount(labels).tolist()}

    return build(cache_dir, "features", inputs, make)


def make_outliers_around(
    net: nn.Module,
    weights: str,
    train: ImageList,
    names: Sequence[str],
    settings: DreamSettings,
    *,
    device: str = "auto",
    workers: int = 0,
) -> Artifact:
    """Outliers as `make_outliers` samples them, but around the features of a classifier.

    Args:
        net: a trained classifier in OpenOOD's protocol.
        weights: sha256 of its weights.
        train: the ID training images as it sees them, without augmentation.
        names: the class names.
        settings: the section `dream`.
        device: where to compute: auto, cpu, mps, cuda or cuda:N.
        workers: processes that decode images where they do not fit into memory.

    Returns:
        The artifact of the outliers.
    """
    space = settings.space
    features = make_features(
        net,
        weights,
        train,
        names,
        settings.cache_dir,
        per_class=space.per_class,
        seed=space.seed,
        device=device,
        workers=workers,
    )
    return make_outliers(
        features, features, names, settings.outliers, space.temperature, settings.cache_dir, device=device
    )
