"""What a training step costs: `make bench`, or `pytest benchmarks/bench_trainers.py -s` to see the findings printed.

Each method's step is compared in one run with a cross-entropy step of the same network on as many images. The two
take turns, and the least time of each counts, so that what else the machine does has little say.
"""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from openood_dream.config import Config
from openood_dream.networks import TimmNetwork
from openood_dream.trainers import TRAINERS

CLASSES, BATCH, ROUNDS = 10, 64, 6
# method -> the most that a step may cost, in cross-entropy steps on as many images
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


class Taught(nn.Module):
    """A teacher whose pass costs nothing: the same logits and features for every image."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.fc = nn.Linear(width, CLASSES)
        self.logits, self.feature = nn.Parameter(torch.randn(BATCH, CLASSES)), nn.Parameter(torch.randn(BATCH, width))

    def forward(self, x: torch.Tensor, return_feature: bool):
        return self.logits, self.feature

    def get_fc_layer(self) -> nn.Linear:
        return self.fc


def make(name: str, loader: Loader):
    """A trainer of a ResNet-18 for 32x32 images, with full queues where it has one."""
    options = {"num_epochs": 10_000, "lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
    config = Config(trainer={"name": name, **SETTINGS.get(name, {})}, optimizer=options, precision="float32")
    net, cls, more = TimmNetwork("resnet18", CLASSES, small=True), TRAINERS[name], {}
    if cls.taught:
        more = {"teacher": Taught(), "embeddings": torch.randn(10_000, 768), "latents": torch.randn(300, 4, 64, 64)}
    trainer = cls(net, loader, *([Loader(BATCH, label=-1)] if cls.auxiliary else []), config, **more)
    trainer.net.train()
    trainer.epoch = 1
    if "queue" in trainer.extra:
        for _ in range(2 * CLASSES * trainer.extra["queue"].rows.shape[1] // 500):
            trainer.extra["queue"].push(torch.rand(500, net.feature_size), torch.randint(CLASSES, (500,)))
    if name == "npos":
        for _ in range(CLASSES):
            trainer.outliers()  # now every class has some
    return trainer


def seconds(trainer, batches: tuple) -> float:
    start = time.perf_counter()
    trainer.step(*batches)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.mark.parametrize("name", LIMITS)
def test_a_step_against_a_cross_entropy_step_on_as_many_images(benchmark, capsys, name):
    torch.manual_seed(0)
    loader = Loader(BATCH)
    ours = make(name, loader)
    batches = next(iter(ours.batches()))
    plain = make("base", Loader(sum(len(batch["label"]) for batch in batches)))
    twin = next(iter(plain.batches()))
    for _ in range(2):
        seconds(plain, twin), seconds(ours, batches)
    spent = [(seconds(plain, twin), seconds(ours, batches)) for _ in range(ROUNDS)]
    base, step = (min(column) for column in zip(*spent, strict=True))
    benchmark.pedantic(ours.step, batches, rounds=1)
    benchmark.extra_info |= {"cross_entropy_seconds": base, "seconds": step, "ratio": step / base}
    with capsys.disabled():
        print(f"\n{name}: {1000 * step:.0f} ms, cross-entropy {1000 * base:.0f} ms, ratio {step / base:.3f}")
    assert step / base <= LIMITS[name]
