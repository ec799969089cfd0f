"""Scoring a checkpoint: alone, and after a benchmark's training."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import stamps

from openood_dream.errors import InputError
from openood_dream.pipelines import test as scoring


@pytest.fixture
def alone(benchmarked, tiny, tmp_path):
    """The config that scores a checkpoint of the benchmark with ebo."""

    def experiment(method: str, *overrides: str):
        checkpoint = benchmarked.root / "runs" / method / "s0" / "best.ckpt"
        words = ["--network.checkpoint", str(checkpoint), "--output_dir", str(tmp_path), "--exp_name", "one"]
        layers = ["pipelines/test/test_ood.yml", "postprocessors/ebo.yml"]
        return tiny.config(*words, *overrides, layers=layers)

    return experiment


def test_alone_gives_the_benchmarks_numbers(benchmarked, alone, tmp_path):
    folder = scoring.test(alone("base"))
    run = benchmarked.root / "runs" / "base" / "s0"
    assert folder == tmp_path / "one"
    assert (folder / "ood.csv").read_text() == (run / "ebo" / "ood.csv").read_text()
    assert scoring.test(alone("base")) == folder


@pytest.mark.parametrize(
    "other, key",
    [
        (("oe",), r"network\.checkpoint"),
        (("base", "--postprocessor.name", "msp"), r"postprocessor\.name"),
        (
            ("base", "--ood_dataset.farood.scrambled.imglist_pth", "'@{ood_dataset.farood.flower.imglist_pth}'"),
            r"farood\.scrambled",
        ),
    ],
)
def test_other_scores_stay(alone, other, key):
    folder = scoring.test(alone("base"))
    before = stamps(folder)
    with pytest.raises(InputError, match=rf"{key}: {folder} holds scores .*; choose another"):
        scoring.test(alone(*other, "--merge_option", "merge"))
    assert stamps(folder) == before
    assert scoring.test(alone("base")) == folder and stamps(folder) == before


def test_scores_of_another_program_stay(alone, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "ood.csv").write_text("theirs")
    with pytest.raises(InputError, match="one: has scores without a record"):
        scoring.test(alone("base"))
    assert (tmp_path / "one" / "ood.csv").read_text() == "theirs"


@pytest.mark.parametrize("key", ["network.checkpoint", "ood_dataset", "dataset.test", "postprocessor"])
def test_missing_key(alone, key):
    with pytest.raises(InputError, match=rf"{key}: missing"):
        scoring.test(alone("base").changed({key: None}))


def test_images_identity_names_every_set(alone):
    found = scoring.images_identity(alone("base", "--postprocessor.APS_mode", "false"))
    shifted = {f"csid.{name}" for name in ("blurred", "contrast", "noisy", "rotated")}
    assert set(found["ood_dataset"]) == {"nearood.near_digits", "farood.flower", "farood.scrambled"} | shifted
    other = alone("base").changed({"ood_dataset.farood.scrambled.imglist_pth": "nowhere.txt"})
    with pytest.raises(InputError, match=r"nowhere\.txt: no such image list \(ood_dataset\.farood\.scrambled"):
        scoring.images_identity(other)


def test_passes_can_be_switched_off(alone, tmp_path, monkeypatch):
    """Nothing of them is read or written."""
    monkeypatch.setattr("openood_dream.evaluators.passes.stored_pass", lambda *args: pytest.fail("used passes on disk"))
    kept, checkpoint = scoring.test(alone("base", "--evaluator.passes", "false")), alone("base").network.checkpoint
    assert (kept / "ood.csv").read_text() == (Path(checkpoint).parent / "ebo" / "ood.csv").read_text()


def test_scores_of_a_search_know_its_images(alone):
    found = scoring.images_identity(alone("base"))  # ebo.yml searches, as OpenOOD's does
    assert "val" in found["ood_dataset"] and "val" in found["dataset"]
