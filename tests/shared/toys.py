"""A network and loaders that cost nothing, for tests of trainers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from openood_dream.config.schema import validated
from openood_dream.datasets.settings import OptimizerSettings
from openood_dream.trainers.known import TRAINERS, BaseTrainer

# trainer -> settings for three classes and batches of four
TINY: dict[str, dict[str, Any]] = {
    "base": {},
    "oe": {"lambda_oe": 0.5},
    "dream_ood": {"beta": 1.5},
    "vos": {"sample_number": 8, "sample_from": 50, "start_epoch": 2},
    "npos": {
        "trainer_args": {
            "sample_number": 8,
            "sample_from": 20,
            "K": 3,
            "select": 4,
            "pick_nums": 2,
            "ID_points_num": 5,
            "start_epoch_KNN": 2,
        }
    },
}


class Batches:
    """A loader of `count` batches of `size` random images in three classes, which notes what was taken from it."""

    def __init__(self, count: int, size: int = 4, label: int | None = None) -> None:
        self.taken = 0
        self.batches = [
            {
                "data": torch.randn(size, 3, 4, 4),
                "label": torch.randint(3, (size,)) if label is None else torch.full((size,), label),
            }
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.batches:
            self.taken += 1
            yield batch


class Net(nn.Module):
    """Linear features and logits of 48 numbers in three classes, and a record of the batch sizes that it saw."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.backbone, self.fc, self.seen = nn.Linear(48, width), nn.Linear(width, 3), []

    def forward(self, x: torch.Tensor, return_feature: bool = False) -> Any:
        self.seen.append(len(x))
        feature = self.backbone(x.flatten(1))
        return (self.fc(feature), feature) if return_feature else self.fc(feature)

    def get_fc_layer(self) -> nn.Linear:
        return self.fc


def options(name: str, *, epochs: int = 1, precision: str = "float32", settings: Any = None, **optimizer: Any) -> dict:
    """The keyword arguments of a trainer; `settings` replace those of TINY."""
    values = {"num_epochs": epochs, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | optimizer
    section = {"name": name} | (TINY.get(name, {}) if settings is None else settings)
    return {
        "settings": validated(TRAINERS[name].Settings, section, ("trainer",)),
        "optimizer": OptimizerSettings(**values),
        "precision": precision,
    }


def make(name: str, train: Any, outliers: Any = None, net: nn.Module | None = None, **given: Any) -> BaseTrainer:
    """A trainer of a Net; keywords are those of `options`."""
    loaders = [train, outliers or Batches(1, label=-1)] if TRAINERS[name].auxiliary else [train]
    return TRAINERS[name](net or Net(), *loaders, **options(name, **given))


def filled(name: str) -> tuple[BaseTrainer, Batches]:
    """A trainer whose queue is full, in an epoch with outliers, and its loader."""
    loader = Batches(12)
    trainer = make(name, loader, epochs=5)
    trainer.train_epoch(1)
    assert trainer.queue.full()
    trainer.epoch = 2
    return trainer, loader


def total(trainer: BaseTrainer, *batches: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of a step."""
    return sum(trainer.terms(*batches).values())


def oal_inputs() -> dict[str, Any]:
    """What OAL's trainer takes of a teacher: outliers of three classes."""
    return {
        "teacher": Net(7),
        "embeddings": torch.randn(30, 6),
        "latents": torch.randn(20, 4, 8, 8),
        "embedding_labels": torch.arange(30) % 3,
        "latent_labels": torch.arange(20) % 3,
    }
