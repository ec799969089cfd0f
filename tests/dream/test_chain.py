"""The order of the stages, what is checked before anything is made, and what a finished chain does not do again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from helpers import Tiny

from openood_dream.datasets import images
from openood_dream.dream.chain import Dream
from openood_dream.errors import InputError
from openood_dream.store.artifacts import MANIFEST

STAGES = ["anchors", "space", "outliers", "generator", "images", "latents", "quality"]


def made(dream: Dream, stage: str):
    """The artifact of a stage; 24 latents."""
    return dream.latents(24) if stage == "latents" else getattr(dream, stage)


@pytest.fixture(scope="module")
def finished(dream: Dream) -> Dream:
    """The tiny chain with all that can be asked of it."""
    for stage in STAGES:
        made(dream, stage)
    return dream


def test_order(finished: Dream):
    artifacts = [getattr(finished, stage) for stage in STAGES if stage not in ("latents", "quality")]
    times = [(artifact.path / MANIFEST).stat().st_mtime_ns for artifact in artifacts]
    assert times == sorted(times)
    assert [artifact.stage for artifact in artifacts] == ["anchors", "space", "outliers", "generator", "images"]


def test_finished_chain_decodes_nothing(finished: Dream, tiny: Tiny, monkeypatch):
    looked: Counter[str] = Counter()
    identity = images.rows_identity

    def counted(rows, imglist, data_dir, key):
        looked[str(imglist)] += 1
        return identity(rows, imglist, data_dir, key)

    def read_image(*args):
        raise AssertionError(f"decodes {args[0]}")

    monkeypatch.setattr(images, "rows_identity", counted)
    monkeypatch.setattr(images, "read_image", read_image)
    again = tiny.config().imagination
    for stage in STAGES:
        assert made(again, stage).reused and made(again, stage).path == made(finished, stage).path
    assert again.training_images() == finished.training_images()
    assert len(looked) == 3 and set(looked.values()) == {1}  # train, val and test, each once


def test_settings_stay_what_they_are(tiny: Tiny, finished: Dream):
    assert finished.settings == tiny.config().dream


def test_plain_and_lines(finished: Dream):
    assert finished.plain(2).path == finished.plain(2, list(range(6))).path
    assert finished.plain(2, [1]).path != finished.plain(2).path
    assert finished.lines([0, 3], 1).stage == "line"


def test_given_pipeline(tiny: Tiny, pipeline_folder: Path, names: list[str]):
    given = ["--dream.generator", str(pipeline_folder), "--dream.class_names", str(names), "--dataset.num_classes", "3"]
    dream = tiny.config(*given).imagination
    assert dream.generator is None and dream.source is dream.text_source
    assert dream.source.path == str(pipeline_folder)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--dream.synthesis.size", "32"], r"command line: dream\.synthesis\.size: 32 .*16"),
        (["--dream.generator.size", "18"], r"command line: dream\.generator\.size: 18 .*4"),
        (["--dream.outliers.k", "30"], r"command line: dream\.outliers\.k: 30 "),
        (["--dream.outliers.select", "31"], r"command line: dream\.outliers\.select: 31 "),
        (["--dream.class_names", "[a, b]"], r"command line: dream\.class_names: 2 .*6"),
        (["--dream.space.network", "timm:resnet"], r"command line: dream\.space\.network: "),
        (["--dream.generator", "nowhere"], r"command line: dream\.generator: .*'nowhere'"),
        (["--dataset.val", "null"], r"dataset\.val: missing"),
    ],
)
def test_checked_before_anything_is_made(tiny: Tiny, tmp_path: Path, overrides, says):
    dream = tiny.config(*overrides, "--dream.cache_dir", str(tmp_path / "none")).imagination
    with pytest.raises(InputError, match=says):
        _ = dream.images
    assert not (tmp_path / "none").exists()


def test_checkpoint_needs_a_network(dream: Dream, tmp_path: Path):
    settings = dream.settings.model_copy(
        update={"quality": dream.settings.quality.model_copy(update={"checkpoint": str(tmp_path)})}
    )
    with pytest.raises(InputError, match=r"dream\.quality\.checkpoint: .*network"):
        _ = Dream(settings, dream.data).quality
