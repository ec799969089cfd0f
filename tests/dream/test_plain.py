"""Images of plain prompts, and what they say of the generator."""

from __future__ import annotations

import pytest
import torch

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.dream import plain
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.imaginer import Imaginer, image_seed, load_pipeline
from openood_dream.dream.plain import load_plain
from openood_dream.dream.quality import Judge
from openood_dream.errors import InputWarning


def test_plain_samples(dream, imaginer):
    found = load_plain(dream.plain(3))
    assert found.shape == (6, 3, 3, 16, 16) and found.dtype == torch.uint8
    seed = [image_seed(0, 4 * 3 + 1)]
    for tokens in (None, load_anchors(dream.anchors)[[4]]):  # a trained generator knows its names by their anchors
        again = imaginer(torch.tensor([4]), tokens, seed)[0]
        assert (again.int() - found[4, 1].int()).abs().max() <= 1


def test_plain_samples_of_some_classes_are_those_that_all_have(dream):
    every, some = load_plain(dream.plain(3)), load_plain(dream.plain(3, [1, 4]))
    assert some.shape == (2, *every.shape[1:]) and (some.int() - every[[1, 4]].int()).abs().max() <= 1


@pytest.fixture(scope="module")
def imaginer(dream) -> Imaginer:
    """What drew the images of the tiny chain."""
    settings = dream.settings.synthesis
    return Imaginer(load_pipeline(dream.source, settings, "cpu"), dream.names, settings)


class Seer(torch.nn.Module):
    """Sees a class that does not depend on the image, or the right one in `right` of its images."""

    def __init__(self, labels: list[int]) -> None:
        super().__init__()
        self.labels = torch.tensor(labels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.eye(6)[self.labels[: len(x)]], x.flatten(1)


@pytest.mark.parametrize("seen, agreement", [([3] * 18, 16.67), ([label for label in range(6) for _ in range(3)], 100)])
def test_a_generator_that_does_not_know_its_classes(dream, recwarn, seen, agreement):
    judge = Judge({"seer": seen}, lambda: Seer(seen))
    made = dream.plain(3, judge=judge)
    assert made.manifest["agreement"] == agreement
    assert bool(made.warnings) == (agreement < 50)
    said = [
        str(one.message)
        for one in recwarn
        if one.category is InputWarning and "does not know its classes" in str(one.message)
    ]
    assert len(said) == len(made.warnings)
    if said:
        assert "16.7 % of 18 images" in said[0] and "dream.synthesis.guidance (2)" in said[0]


def test_images_are_drawn_after_the_plain_ones(dream, tiny):
    samples = dream.plain_samples
    assert samples.reused or samples.path.exists()
    assert (samples.path / "manifest.json").stat().st_mtime_ns <= (
        dream.images.path / "manifest.json"
    ).stat().st_mtime_ns
    assert samples.manifest["inputs"]["per_class"] == 4 and samples.manifest["inputs"]["labels"] == list(range(6))


def test_a_pipeline_is_tried_before_long_stages(tiny, pipeline_folder, names, tmp_path, monkeypatch):
    given = ["--dream.generator", str(pipeline_folder), "--dream.class_names", str(names), "--dataset.num_classes", "3"]
    for split in ("train", "val"):
        rows = read_imglist(tiny.config().at(f"dataset.{split}.imglist_pth"))
        write_imglist(tmp_path / f"{split}.txt", [row for row in rows if row[1] < 3])
        given += [f"--dataset.{split}.imglist_pth", str(tmp_path / f"{split}.txt")]
    dream = tiny.config(*given, "--dream.cache_dir", str(tmp_path / "dream")).imagination

    def broken(*args, **more):
        raise FloatingPointError("no numbers")

    monkeypatch.setattr(plain.Imaginer, "__call__", broken)
    with pytest.raises(FloatingPointError):
        dream.images  # noqa: B018
    assert not list((tmp_path / "dream").glob("space-*"))
