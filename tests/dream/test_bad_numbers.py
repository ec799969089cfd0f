"""No stage is finished with numbers that are none, and what is doubtful about one is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from openood_dream.dream.quality import _Bench, doubts
from openood_dream.dream.quality_settings import FilterSettings
from openood_dream.dream.samplers import SAMPLERS
from openood_dream.dream.space import _doubts
from openood_dream.errors import InputError, InputWarning
from openood_dream.experiment import Dream

NAMES = ["cat", "dog"]


@pytest.mark.parametrize(
    "stage, key, value, words",
    [
        ("space", "dream.space.lr", "1e8", r"space: epoch \d+: the loss is not finite; lower dream\.space\.lr"),
        ("generator", "dream.generator.vae_lr", "1e30", r"autoencoder.*lower dream\.generator\.vae_lr"),
    ],
)
def test_trainings_that_diverge_are_not_finished(tiny, tmp_path, stage, key, value, words):
    def imagination(*more: str) -> Dream:
        return tiny.config("--dream.cache_dir", str(tmp_path), "--dream.space.epochs", "2", *more).imagination

    with pytest.raises(FloatingPointError, match=words):
        getattr(imagination(f"--{key}", value), stage)
    assert not list(tmp_path.glob(f"{stage}-*/manifest.json"))
    assert getattr(imagination(), stage).path.exists(), "the remedy works with nothing deleted by hand"


@pytest.mark.parametrize("accuracy, count", [(20.0, 1), (30.0, 1), (60.0, 0)])
def test_a_space_at_chance(tiny, accuracy, count):
    found = _doubts(accuracy, torch.arange(100) % 4, tiny.config().dream.space)
    assert len(found) == count and all("dream.space.epochs" in text for text in found)


def images(*kept: int) -> pd.DataFrame:
    """A table of 20 images of each class, of which so many are kept."""
    frames = [pd.DataFrame({"class": label, "dropped": ["near ID"] * 20}) for label in range(len(kept))]
    for frame, count in zip(frames, kept):
        frame.loc[: count - 1, "dropped"] = ""
    return pd.concat(frames, ignore_index=True)


def test_a_filter_that_leaves_few_images():
    (text,) = doubts(images(1, 15), NAMES, FilterSettings(distance=0.9))
    assert text.startswith("the filter keeps 16 of 40 images, fewer than 10 of some classes (cat 1)")
    assert "loosen dream.filter.distance, or draw more" in text and "confidence" not in text
    (text,) = doubts(images(1, 15), NAMES, FilterSettings(duplicates=True))
    assert text.endswith("(cat 1); draw more (dream.synthesis.per_class)")
    assert doubts(images(12, 15), NAMES, FilterSettings(distance=0.9)) == []
    assert doubts(images(0, 0), NAMES, FilterSettings()) == []


def test_what_is_doubtful_goes_with_what_is_made_of_it(tiny, dream, tmp_path):
    """From the space's manifest to the run's record, each time that it is used."""
    words = ["--dream.cache_dir", str(tmp_path), "--dream.space.epochs", "1", "--dream.space.lr", "1e-9"]
    imagination = tiny.config(*words).imagination
    with pytest.warns(InputWarning, match="no more than chance"):
        assert "chance" in imagination.space.warnings[0]
    with pytest.warns(InputWarning, match="no more than chance"):
        assert tiny.config(*words).imagination.space.reused
    assert np.isfinite(imagination.space.manifest["val_accuracy"])


def test_outliers_that_are_no_numbers(tiny, dream, monkeypatch):
    sample = SAMPLERS["knn"].sample

    def broken(self, *given, **more):
        found = sample(self, *given, **more)
        found["distance"][0] = torch.nan
        return found

    monkeypatch.setattr(SAMPLERS["knn"], "sample", broken)
    with pytest.raises(InputError, match=r"dream\.outliers: class 'zero': distance .*not finite"):
        tiny.config("--dream.outliers.seed", "77").imagination.outliers  # noqa: B018


def test_a_judge_that_sees_no_numbers(tiny):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return torch.full((len(x), 6), torch.nan), x.flatten(1)

    data = tiny.config().data
    with pytest.raises(FloatingPointError, match="not finite"):
        _Bench(Broken(), torch.device("cpu")).verdicts(data.loader("dataset", "val"), "val")
