"""The queue of the newest features."""

from __future__ import annotations

import pytest
import torch
from toys import Batches, make

from openood_dream.errors import InputError
from openood_dream.trainers.queue import ClassQueue


def test_newest_features_of_each_class():
    queue, kept = ClassQueue(3, 4, 2), {0: [], 1: [], 2: []}
    assert not queue.full()
    for _ in range(20):
        features, labels = torch.randn(4, 2), torch.randint(3, (4,))
        queue.push(features, labels)
        for z, y in zip(features, labels.tolist()):
            kept[y] = [*kept[y], z][-4:]
    assert queue.full()
    for label, rows in kept.items():
        held = {tuple(row.tolist()) for row in queue.rows[label]}
        assert held == {tuple(row.tolist()) for row in rows}


def test_batch_larger_than_the_queue():
    with pytest.raises(ValueError, match="4 features of a class for batches of 5"):
        ClassQueue(3, 4, 2).push(torch.randn(5, 2), torch.zeros(5, dtype=torch.long))


@pytest.mark.parametrize(
    "name, key", [("vos", "trainer.sample_number"), ("npos", "trainer.trainer_args.sample_number")]
)
def test_trainer_names_the_key(name, key):
    with pytest.raises(InputError, match=rf"{key}: 8 features of a class for batches of 9"):
        make(name, Batches(1, size=9)).train_epoch(1)
