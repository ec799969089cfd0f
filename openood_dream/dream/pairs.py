"""Pairs of imagined images that differ by their meaning alone, for trainers that take the inlier of a pair as an ID image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.dream.image_set import IMAGES, PARTNER
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tables import TEXTS, read_table


class TrainingImages(NamedTuple):
    """Imagined images to train with: an image list, and the hash of all that decides about them."""

    imglist: Path
    data_dir: Path
    identity: str
    description: str
    warnings: list[str]


def check_pair(settings: SynthesisSettings, keeps_class: bool, wanted: bool = False) -> None:
    """Raises InputError where images cannot be drawn in pairs, or are not to be and should.

    Args:
        settings: have `pair`.
        keeps_class: whether the images still belong to their class, so that they are inliers themselves.
        wanted: whether a trainer takes pairs.
    """
    if settings.pair and keeps_class:
        raise settings.error("pair", "the images are inliers themselves (dream.outliers.method); leave it out")
    if wanted and not settings.pair:
        raise settings.error("pair", "trainer.pairs takes pairs; expected true or autoencoder, got false")


def make_pairs(images: Artifact, kept: Artifact, cache_dir: str | Path) -> Artifact:
    """`imglist.txt` with the outliers of a list, label -1, each followed by its partner, labelled with its class.

    Args:
        images: the images stage's artifact, whose table names partners.
        kept: an artifact with the list: the same one, or what a filter left of it.
        cache_dir: folder of all artifacts.

    Returns:
        The artifact; its list's files lie in the folder of `images`.

    Raises:
        InputError: the set was not drawn in pairs.
    """

    def make(folder: Path) -> dict[str, Any]:
        remedy = "trainer.pairs needs images that were drawn in pairs: draw them so, or leave trainer.pairs out"
        table = read_table(images.path / "images.parquet", IMAGES | {PARTNER: TEXTS}, remedy)
        about = {
            file: (partner, label)
            for file, partner, label in zip(table["file"], table[PARTNER], table["class"].tolist(), strict=True)
        }
        rows = []
        for file, label in read_imglist(kept.path / "imglist.txt"):
            if label < 0 and about[file][0]:
                rows += [(file, -1), about[file]]
        write_imglist(folder / "imglist.txt", rows)
        return {"pairs": len(rows) // 2, "description": images.manifest["description"]}

    return build(cache_dir, "pairs", {"images": images.hash, "kept": kept.hash}, make)
