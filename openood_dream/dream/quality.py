"""Judges imagined images before anything is trained with them: too close to ID, far enough, all different?

An outlier that the ID classifier takes for its own class with confidence teaches a network that ID images are outliers.
The judge is the space's encoder with its cosine classifier (DREAM-OOD, Eq. 2), or a checkpoint of `network`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from openood_dream.datasets.images import ImageList, loader
from openood_dream.datasets.imglist import write_imglist
from openood_dream.datasets.loaders import Data
from openood_dream.device import pick_device
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.image_set import listed, read_images
from openood_dream.dream.outliers import quantiles
from openood_dream.dream.quality_settings import FilterSettings, QualitySettings
from openood_dream.dream.settings import SpaceSettings
from openood_dream.dream.space import BATCH, cosine_logits, load_encoder
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import get_network
from openood_dream.networks.features import embed
from openood_dream.networks.settings import AnyNetwork
from openood_dream.sampling.knn import knn_distance
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.files import sha256
from openood_dream.store.tables import write_table

# ---------------------------------------------------------------------------------------------------------- the judge


@dataclass(frozen=True)
class Judge:
    """A classifier that judges images.

    Args:
        identity: what names it in hashes.
        load: loads it: a network from images (B, 3, S, S) to logits (B, C) and unit features (B, D).
    """

    identity: dict[str, Any]
    load: Callable[[], nn.Module]


FEW = 10  # images of a class, below which what is learned from them is doubtful


class _BySpace(nn.Module):
    """The space's encoder and its cosine classifier."""

    def __init__(self, encoder: nn.Module, anchors: Tensor, temperature: float) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature
        self.register_buffer("anchors", anchors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.normalize(self.encoder(x).float(), dim=1)
        return cosine_logits(h, self.get_buffer("anchors"), self.temperature), h


class _ByNetwork(nn.Module):
    """A classifier in OpenOOD's network protocol."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.net(x, return_feature=True)
        return logits, F.normalize(features.float(), dim=1)


def space_judge(anchors: Artifact, space: Artifact, settings: SpaceSettings, image_size: int) -> Judge:
    """The space's encoder with its cosine classifier as the judge.

    Args:
        anchors: the anchors stage's artifact.
        space: the space stage's artifact.
        settings: the `dream.space` that it was made with.
        image_size: pixels a side of the images.
    """

    def load() -> nn.Module:
        targets = load_anchors(anchors)
        encoder = load_encoder(space, settings, targets.shape[1], image_size)
        return _BySpace(encoder, targets, settings.temperature)

    return Judge({"space": space.hash}, load)


def network_judge(settings: QualitySettings, network: AnyNetwork, shape: Mapping[str, int]) -> Judge:
    """A checkpoint of a classifier as the judge.

    Args:
        settings: `dream.quality`, which names the checkpoint.
        network: the classifier.
        shape: image_size, num_classes and channels, as networks.factory takes them.

    Raises:
        InputError: the checkpoint is not there.
    """
    checkpoint = Path(settings.checkpoint or "")
    if not checkpoint.is_file():
        raise settings.error("checkpoint", f"no file {settings.checkpoint!r}; expected a checkpoint of network")

    def load() -> nn.Module:
        net = get_network(network, **shape)
        load_weights(net, checkpoint, settings.key("checkpoint"))
        return _ByNetwork(net)

    # what the checkpoint must fit, and not where it may be loaded from
    about = network.model_dump(include={"name", "args"})
    return Judge({"checkpoint": sha256(checkpoint), "network": about}, load)


@dataclass(frozen=True)
class _Bench:
    """A loaded judge, and the device that it works on."""

    net: nn.Module
    device: torch.device

    def verdicts(self, batches: DataLoader, desc: str) -> tuple[Tensor, Tensor]:
        """Probabilities (N, C) and unit features (N, D) of a loader's images, on the CPU."""
        logits, features = embed(self.net, batches, self.device, desc=f"quality: {desc}")
        if not (torch.isfinite(logits).all() and torch.isfinite(features).all()):
            raise FloatingPointError(f"quality: what the judge sees in {desc} is not finite; check its weights")
        return logits.softmax(1), features


# ----------------------------------------------------------------------------------------------------- what is judged


def difference_hash(images: Tensor) -> np.ndarray:
    """A perceptual hash: whether each of 8x8 grey means exceeds its left neighbour.

    Images that differ in size, noise or brightness alone mostly have the same hash.

    Args:
        images: uint8 (N, 3, S, S).

    Returns:
        64 bits for each image, uint64 (N,).
    """
    grey = images.float().mean(1, keepdim=True)
    grey = F.interpolate(grey, (8, 9), mode="bilinear", antialias=True, align_corners=False)[:, 0]
    bits = (grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).numpy()
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def duplicates(images: ImageList) -> np.ndarray:
    """The file of the first image with the same difference_hash as each image (N,), or "" where it is the first."""
    hashes = np.concatenate([difference_hash(pixels) for pixels in images.raw(BATCH)])
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    files = np.array([name for name, _ in images.rows], dtype=object)
    return np.where(first[group] == np.arange(len(files)), "", files[first[group]])


def add_verdicts(frame: pd.DataFrame, probabilities: Tensor, features: Tensor, bank: Tensor, k: int) -> None:
    """Adds the columns predicted, confidence and distance to a table of images.

    Args:
        frame: has a column class, and a row for each of N images.
        probabilities: of each class, (N, C).
        features: unit features of the images, (N, D).
        bank: unit features of the ID training images, (M, D).
        k: which nearest of them measures the distance.
    """
    own = torch.tensor(frame["class"].to_numpy())
    frame["predicted"] = probabilities.argmax(1).numpy()
    frame["confidence"] = probabilities.gather(1, own[:, None])[:, 0].numpy()
    frame["distance"] = knn_distance(features, bank, k).numpy()


def dropped(found: pd.DataFrame, settings: FilterSettings, val: np.ndarray, inliers: bool) -> pd.Series:
    """Why each image is dropped, or "": confidence, else distance, else duplicate of one that is kept.

    `confidence` drops outliers whose own class is surer than that, and inliers whose own class is less sure; `distance`
    drops outliers nearer to ID than that share of the validation images, and inliers farther.

    Args:
        found: has the columns file, confidence, distance and duplicate.
        settings: `dream.filter`.
        val: distances of the ID validation images (V,).
        inliers: whether the images are inliers.

    Returns:
        A reason for each row.
    """
    why = pd.Series("", index=found.index)
    if settings.distance is not None:
        far = found["distance"] > np.quantile(val, settings.distance)
        why[far if inliers else ~far] = "distance"
    if settings.confidence is not None:
        sure = found["confidence"] > settings.confidence
        why[~sure if inliers else sure] = "confidence"
    if settings.duplicates:
        left = found[why == ""]
        again = left["duplicate"].where(left["duplicate"] != "", left["file"]).duplicated()
        why[again[again].index] = "duplicate"
    return why


def summary(found: pd.DataFrame, settings: QualitySettings) -> dict[str, Any]:
    """Counts and quantiles of a class, or of all ID images.

    Args:
        found: its rows, with the columns of `add_verdicts`, and duplicate and dropped if it has them.
        settings: `dream.quality`, which says what is confident.
    """
    own = found["predicted"] == found["class"]
    about = {
        "images": len(found),
        "own_class": int(own.sum()),
        "confident": int((own & (found["confidence"] > settings.confidence)).sum()),
        "distance": quantiles(found["distance"].to_numpy()) if len(found) else {},
    }
    if "dropped" in found:
        about |= {"duplicates": int((found["duplicate"] != "").sum()), "dropped": int((found["dropped"] != "").sum())}
    return about


# ------------------------------------------------------------------------------------------------------------ the stage


def make_quality(
    images: Artifact,
    judge: Judge,
    data: Data,
    names: Sequence[str],
    settings: QualitySettings,
    filter_settings: FilterSettings,
    cache_dir: str | Path,
    *,
    inliers: bool = False,
    device: str = "auto",
) -> Artifact:
    """The quality stage: `quality.parquet` with a row per image, and `imglist.txt` with those that the filter keeps.

    Columns: file, class, predicted, confidence (in its own class), distance (of its feature to the k-th nearest ID
    training feature), duplicate (of an earlier image of the set, by difference_hash) and dropped (why, or ""). The
    manifest has a list of `classes` with counts and quantiles, and the same of ID test images (`id`), where there are
    any.

    Args:
        images: the images stage's artifact.
        judge: what judges them.
        data: the ID images to compare with: dataset.train, dataset.val, and dataset.test where there is one.
        names: the class names.
        settings: `dream.quality`.
        filter_settings: `dream.filter`.
        cache_dir: folder of all artifacts.
        inliers: whether the images are inliers.
        device: where the judge runs: auto, cpu, mps, cuda or cuda:N.

    Returns:
        The artifact; `quality_table` reads it.

    Raises:
        InputError: k exceeds the number of training images, or the filter drops everything.
    """
    sets = ["train", "val", *(["test"] if data.dataset.test else [])]
    inputs = {
        "images": images.hash,
        "judge": judge.identity,
        "settings": settings.model_dump(exclude={"checkpoint"}),
        "filter": filter_settings.model_dump(),
        "transform": data.transform.identity,
        "data": [data.identity("dataset", name) for name in sets],
    }

    def make(folder: Path) -> dict[str, Any]:
        bench = _Bench(judge.load(), pick_device(device))
        found, test = _verdicts(images, bench, data, settings, filter_settings, inliers)
        _write(folder, images, found)
        rows = [found[found["class"] == label] for label in range(len(names))]
        about: dict[str, Any] = {
            "classes": [summary(own, settings) | {"name": name} for own, name in zip(rows, names, strict=True)],
            "kept": int((found["dropped"] == "").sum()),
            "description": images.manifest["description"],
        }
        about["warnings"] = doubts(found, names, filter_settings)
        return about if test is None else about | {"id": summary(test, settings)}

    return build(cache_dir, "quality", inputs, make, label=images.label)


def doubts(found: pd.DataFrame, names: Sequence[str], settings: FilterSettings) -> list[str]:
    """What is doubtful about what a filter leaves.

    Args:
        found: the table of the image set, with `class` and `dropped`.
        names: the class names in label order.
        settings: `dream.filter`.

    Returns:
        A line for each doubt.
    """
    kept = found["dropped"] == ""
    counts = np.bincount(found["class"][kept], minlength=len(names))
    if not settings.active or counts.min() >= FEW:
        return []
    few = [f"{names[label]} {counts[label]}" for label in np.argsort(counts, kind="stable")[:3] if counts[label] < FEW]
    strict = [settings.key(word) for word in ("distance", "confidence") if getattr(settings, word) is not None]
    loosen = f"loosen {' or '.join(strict)}, or " if strict else ""
    return [
        f"the filter keeps {int(kept.sum())} of {len(found)} images, fewer than {FEW} of some classes ({', '.join(few)}); "
        f"{loosen}draw more (dream.synthesis.per_class)"
    ]


def _verdicts(
    images: Artifact,
    bench: _Bench,
    data: Data,
    settings: QualitySettings,
    filter_settings: FilterSettings,
    inliers: bool,
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The tables of the image set and of the ID test images, if there are any."""
    workers = data.dataset.num_workers
    train = loader(data.images("dataset", "train"), BATCH, shuffle=False, workers=workers)
    _, bank = bench.verdicts(train, "ID training images")
    if settings.k > len(bank):
        raise settings.error("k", f"expected at most {len(bank)} (training images), got {settings.k}")
    found = _judged(images, bench, bank, data, settings.k)
    _, features = bench.verdicts(data.loader("dataset", "val"), "ID validation images")
    found["dropped"] = dropped(found, filter_settings, knn_distance(features, bank, settings.k).numpy(), inliers)
    _check_kept(found, filter_settings)
    if data.dataset.test is None:
        return found, None
    test = pd.DataFrame({"class": data.images("dataset", "test").labels.numpy()})
    add_verdicts(test, *bench.verdicts(data.loader("dataset", "test"), "ID test images"), bank, settings.k)
    return found, test


def _judged(images: Artifact, bench: _Bench, bank: Tensor, data: Data, k: int) -> pd.DataFrame:
    """The table of an image set with what the judge says of each image."""
    drawn = data.open(images.path / "imglist.txt", images.path, "dream")
    batches = loader(drawn, BATCH, shuffle=False, workers=data.dataset.num_workers)
    found = listed(read_images(images.path))[["file", "class"]].copy()
    add_verdicts(found, *bench.verdicts(batches, "imagined images"), bank, k)
    found["duplicate"] = duplicates(drawn)
    return found


def _check_kept(found: pd.DataFrame, settings: FilterSettings) -> None:
    """Raises InputError where the filter drops everything."""
    if (found["dropped"] != "").all():
        reasons = ", ".join(f"{reason} {count}" for reason, count in found["dropped"].value_counts().items())
        raise settings.error("", f"drops all {len(found)} images ({reasons}); loosen it")


def _write(folder: Path, images: Artifact, found: pd.DataFrame) -> None:
    """Writes the table, and the list of the images that are kept."""
    table, kept = listed(read_images(images.path)), found["dropped"] == ""
    write_table(folder / "quality.parquet", found)
    write_imglist(folder / "imglist.txt", zip(table["file"][kept], table["label"][kept], strict=True))
