"""What a training step costs: `make bench`, or `pytest benchmarks/bench_trainers.py -s` to see the findings printed.

Each method's step is compared in one run with a cross-entropy step of the same network on as many images; `cost` is
how many of these it takes.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openood_dream.config.schema import validated
from openood_dream.datasets.settings import OptimizerSettings
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.trainers.known import TRAINERS, BaseTrainer

CLASSES, BATCH, ROUNDS = 10, 64, 6
# method -> the most that a step is promised to cost
LIMITS = {"oe": 1.05, "dream_ood": 1.05, "vos": 1.15, "npos": 1.3, "oal": 1.2}
SETTINGS = {
    "vos": {"start_epoch": 0},
    "npos": {"trainer_args": {"start_epoch_KNN": 0}},
}


class Loader(list):
    """A loader of one batch of random CIFAR-sized images."""

    def __init__(self, size: int, label: int | None = None) -> None:
        labels = torch.randint(CLASSES, (size,)) if label is None else torch.full((size,), label)
        super().__init__([{"data": torch.randn(size, 3, 32, 32), "label": labels}])


class Teacher(nn.Module):
    """A teacher whose pass costs nothing: the same logits and features for every image."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.fc = nn.Linear(width, CLASSES)
        self.logits, self.feature = nn.Parameter(torch.randn(BATCH, CLASSES)), nn.Parameter(torch.randn(BATCH, width))

    def forward(self, x: torch.Tensor, return_feature: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits, self.feature

    def get_fc_layer(self) -> nn.Linear:
        return self.fc


def make(name: str, loader: Loader) -> BaseTrainer:
    """A trainer of a ResNet-18 for 32x32 images, with full queues where it has one."""
    net, cls = TimmNetwork("resnet18", CLASSES, small=True), TRAINERS[name]
    options = {
        "settings": validated(cls.Settings, {"name": name, **SETTINGS.get(name, {})}),
        "optimizer": OptimizerSettings(num_epochs=10_000, lr=1e-4, momentum=0.9, weight_decay=5e-4),
        "precision": "float32",
    }
    if cls.needs_teacher:
        options |= {
            "teacher": Teacher(),
            "embeddings": torch.randn(10_000, 768),
            "latents": torch.randn(300, 4, 64, 64),
            "embedding_labels": torch.arange(10_000) % 10,
            "latent_labels": torch.arange(300) % 10,
        }
    trainer = cls(net, loader, *([Loader(BATCH, label=-1)] if cls.auxiliary else []), **options)
    trainer.net.train()
    trainer.epoch = 1
    if "queue" in trainer.memory:
        for _ in range(2 * CLASSES * trainer.queue.rows.shape[1] // 500):
            trainer.queue.push(torch.rand(500, net.feature_size), torch.randint(CLASSES, (500,)))
    if name == "npos":
        for _ in range(CLASSES):
            trainer.outliers()  # now every class has some
    return trainer


@pytest.mark.parametrize("name", LIMITS)
def test_step_against_cross_entropy(benchmark, against, capsys, name):
    torch.manual_seed(0)
    ours = make(name, Loader(BATCH))
    batches = next(iter(ours.batches()))
    plain = make("base", Loader(sum(len(batch["label"]) for batch in batches)))
    twin = next(iter(plain.batches()))

    words, wanted = "a cross-entropy step", 1 / LIMITS[name]
    rounds = {"rounds": ROUNDS, "reference_rounds": ROUNDS}
    against(lambda: ours.step(*batches), lambda: plain.step(*twin), words, wanted=wanted, **rounds)
    if "ratio" in benchmark.extra_info:
        benchmark.extra_info |= {"cost": 1 / benchmark.extra_info["ratio"], "promised": LIMITS[name]}
        with capsys.disabled():
            print(f"\n{name}: {benchmark.extra_info['cost']:.3f} cross-entropy steps, promised {LIMITS[name]}")
