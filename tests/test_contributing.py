"""What CONTRIBUTING.md shows how to add: each file is built from it, and works."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import Tiny
from torch import nn

from openood_dream.dream import settings as dream_settings
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.samplers.base import get_sampler
from openood_dream.experiment import Experiment
from openood_dream.postprocessors import settings as detector_settings
from openood_dream.postprocessors.base import Pass
from openood_dream.postprocessors.known import find_postprocessor
from openood_dream.store.artifacts import Artifact
from openood_dream.trainers import settings as trainer_settings
from openood_dream.trainers.base import TRAINERS

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = {match[1]: match[2] for match in re.finditer(r"```python\n# openood_dream/(\S+);[^\n]*\n(.*?)```", TEXT, re.S)}
MODULES: tuple[dict, ...] = (vars(trainer_settings), vars(detector_settings), vars(dream_settings))
SETTINGS = {
    "trainers/settings.py": trainer_settings,
    "postprocessors/settings.py": detector_settings,
    "dream/settings.py": dream_settings,
}


@pytest.fixture(autouse=True)
def registered(own_names) -> Iterator[None]:
    """Every block is executed in the module that it would be in, and forgotten after the test."""
    before = [dict(registry) for registry in MODULES]
    for name, code in BLOCKS.items():
        module = SETTINGS.get(name) or types.ModuleType(name)
        exec(compile(code, name, "exec", dont_inherit=True), vars(module))  # noqa: S102  (our own text)
    yield
    for registry, old in zip(MODULES, before, strict=True):
        registry.clear()
        registry.update(old)


def test_each_is_short():
    assert len(BLOCKS) == 6 and max(len(code.splitlines()) for code in BLOCKS.values()) < 40


def test_the_trainer():
    settings = Experiment({"trainer": {"name": "smooth", "amount": 0.3}}).trainer
    trainer = object.__new__(TRAINERS["smooth"])
    logits, labels = torch.randn(5, 3), torch.randint(3, (5,))
    trainer.settings, trainer.logits, trainer.labels = settings, lambda batch: logits, lambda batch: labels
    (loss,) = trainer.terms({}).values()
    p = logits.log_softmax(1)
    assert torch.allclose(loss, -(0.7 * p[torch.arange(5), labels] + 0.3 * p.mean(1)).mean())


def test_the_postprocessor():
    settings = Experiment(
        {"postprocessor": {"name": "entropy", "postprocessor_args": {"temperature": 2.0}}}
    ).postprocessor
    cls = find_postprocessor(settings, "timm:resnet18")
    sure, unsure = torch.tensor([[9.0, 0, 0]]), torch.zeros(1, 3)
    scores = cls(cls.arguments(settings)).confidence(Pass(torch.cat([sure, unsure]), torch.zeros(2, 1), torch.zeros(2)))
    assert scores[0] > scores[1] and scores[1].item() == pytest.approx(-torch.tensor(3.0).log().item())


def test_the_sampler():
    outliers = {"method": "mixed", "k": 3, "share": 3.0}
    settings = Experiment({"dream": {"class_names": ["a"], "generator": "x/y", "outliers": outliers}}).dream.outliers
    z = nn.functional.normalize(torch.randn(20, 8), dim=1)
    found = get_sampler(settings).sample(z, 0, torch.randn(2, 8), 0.1)
    assert found["embeddings"].shape == (20, 8) and found["distance"].median() > 0
    assert torch.allclose(found["embeddings"].norm(dim=1), torch.ones(20))


@pytest.mark.usefixtures("dream")
def test_the_sampler_in_the_chain(tiny: Tiny):
    def outliers(seed: int) -> Artifact:
        words = ["--dream.outliers.method", "mixed", "--dream.outliers.share", "3", "--dream.outliers.seed", str(seed)]
        return tiny.config(*words).imagination.outliers

    table, embeddings = load_outliers(outliers(0))
    assert len(table) == len(embeddings) == 6 * 30 and (table["distance"] > 0).all()
    assert outliers(0).reused and not torch.equal(embeddings.all(), load_outliers(outliers(1))[1].all())
