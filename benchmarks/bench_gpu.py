"""What a training costs on a GPU: `make gpu` runs this suite, the tests marked `cuda`, and drawing at full size.

A ResNet-18 for images of 32 pixels in bfloat16, batches of 128 as OpenOOD trains it, from images in memory. `data_percent`
is the share of the time that making the batches takes, `matrix_rate_percent` the share of the card's own rate of matrix
products (measured in the same run) that forward and backward pass reach.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from openood_dream.config.schema import validated
from openood_dream.datasets.images import ImageList, Transform, loader, placed
from openood_dream.datasets.imglist import write_imglist
from openood_dream.datasets.settings import OptimizerSettings
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.trainers.known import TRAINERS

CLASSES, BATCH, IMAGES = 10, 128, 12_800
METHODS = {
    "base": {},
    "oe": {},
    "dream_ood": {},
    "vos": {"start_epoch": 0, "sample_number": 1000},
    "npos": {"trainer_args": {"start_epoch_KNN": 0}},
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def images(folder: Path, count: int) -> ImageList:
    """Random images of 32 pixels, on disk once."""
    rng, rows = np.random.default_rng(0), []
    for i in range(256):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    rows = [(f"{i % 256}.png", i % CLASSES) for i in range(count)]
    write_imglist(folder / "list.txt", rows)
    opened = ImageList(folder / "list.txt", folder, Transform(32, 32, "cifar10"), augment=True)
    opened.decode()
    return opened


def operations(net: torch.nn.Module) -> int:
    """Those of forward and backward pass of an image."""
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(BATCH, 3, 32, 32, device=DEVICE)).sum().backward()
    return counter.get_total_flops() // BATCH


def matrix_rate(width: int = 8192) -> float:
    """Operations per second of a large matrix product in bfloat16."""
    width = width if DEVICE.type == "cuda" else 512
    a, b = (torch.randn(width, width, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    start = now()
    for _ in range(10):
        a @ b
    return 10 * 2 * width**3 / (now() - start)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> ImageList:
    return images(tmp_path_factory.mktemp("images"), IMAGES if DEVICE.type == "cuda" else 4 * BATCH)


@pytest.mark.parametrize("name", METHODS)
def test_training_images_per_second(benchmark, opened, name):
    """An epoch, with its batches."""
    cls = TRAINERS[name]
    torch.manual_seed(0)
    net = TimmNetwork("resnet18", CLASSES, small=True).to(DEVICE, memory_format=torch.channels_last)
    loaders = [placed(loader(opened, BATCH, shuffle=True), DEVICE) for _ in range(2 if cls.auxiliary else 1)]
    trainer = cls(
        net,
        *loaders,
        settings=validated(cls.Settings, {"name": name, **METHODS[name]}, ("trainer",)),
        optimizer=OptimizerSettings(num_epochs=100, lr=0.01, momentum=0.9, weight_decay=5e-4),
        precision="bfloat16" if DEVICE.type == "cuda" else "float32",
    )
    torch.backends.cudnn.benchmark = True
    epochs = iter(range(1, 100))

    def epoch() -> None:
        trainer.train_epoch(next(epochs))
        now()

    if DEVICE.type == "cuda":
        epoch()  # chooses algorithms, fills queues
        epoch()
    benchmark.pedantic(epoch, rounds=3 if DEVICE.type == "cuda" else 1)
    start = now()
    for _ in trainer.batches():
        pass
    data = now() - start
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.min
        benchmark.extra_info |= {
            "images_per_second": len(opened) / seconds,
            "data_percent": 100 * data / seconds,
            "matrix_rate_percent": 100 * operations(net) * len(opened) * len(loaders) / seconds / matrix_rate(),
        }
