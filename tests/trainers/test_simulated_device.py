"""Trainers on a simulated device, which like a GPU shares no memory with the CPU: nothing mixes them, no step reads."""

from __future__ import annotations

import pytest
import torch
from simulated import DEVICE, Reads, simulated
from toys import Batches, Net, options

from openood_dream.datasets.images import ImageList, Transform, _Resident, random_crop, random_flip
from openood_dream.datasets.imglist import write_imglist
from openood_dream.trainers.base import Watch
from openood_dream.trainers.known import TRAINERS

AUXILIARY = ("oe", "dream_ood", "dream_id")


@pytest.mark.parametrize("name", ["base", *AUXILIARY, "vos"])
def test_steps_neither_mix_devices_nor_read(name):
    with simulated() as device:
        loaders = [Batches(30), *([Batches(30, label=None if name == "dream_id" else -1)] if name in AUXILIARY else [])]
        trainer = TRAINERS[name](Net().to(device), *loaders, **options(name, epochs=3))
        trainer.epoch, watch = 2, Watch()
        for batches in zip(*loaders):
            terms = trainer.step(*batches)
            watch.see(terms)
    assert all(term.device == DEVICE for term in terms.values()) and (
        "outliers" in terms or name in ("base", "dream_id")
    )


def test_npos_reads_only_to_find_outliers(monkeypatch):
    monkeypatch.setattr("openood_dream.sampling.nearest.AT_HAND", frozenset())  # as on a GPU
    loader = Batches(12)
    trainer = TRAINERS["npos"](Net(), loader, **options("npos", epochs=3))
    reads = []
    for epoch, batch in zip([1] * 8 + [2] * 4, loader, strict=True):  # outliers begin with the second epoch
        trainer.epoch = epoch
        with Reads() as counted:
            trainer.step(batch)
        reads.append(counted.count)
    # a round for each of two boundary points; on the CPU, one_hot looks at its labels, which it does not on a GPU
    assert len(set(reads[:8])) == 1 and max(reads[8:]) - reads[0] <= 6 * 2


def test_batches_of_resident_images_are_made_where_they_are(tmp_path):
    write_imglist(tmp_path / "list.txt", [(f"{i}.png", 0) for i in range(6)])
    images = ImageList(tmp_path / "list.txt", tmp_path, Transform(8, 8, "cifar10"), augment=True)
    images._decoded = _Resident(torch.zeros(6, 3, 8, 8, dtype=torch.uint8, device=DEVICE))
    with simulated():
        batch = images.__getitems__([1, 4])
    assert images.resident and batch["data"].device == DEVICE and batch["label"].device.type == "cpu"


def test_augmentation_draws_its_numbers_on_the_cpu():
    torch.manual_seed(0)
    random_flip(random_crop(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), 4))
    after = torch.rand(1)
    torch.manual_seed(0)
    with simulated():
        random_flip(random_crop(torch.zeros(5, 3, 8, 8, dtype=torch.uint8, device=DEVICE), 4))
    assert torch.equal(torch.rand(1), after)
