"""Trainings that would not be what their name says: the line that names the key, before anything is written."""

from __future__ import annotations

import pytest
from rows import TRAIN, Row, key, rejected

VOS = f"{TRAIN} --trainer.name vos"
NPOS = f"{TRAIN} --trainer.name npos --dataset.train.batch_size 8 --optimizer.num_epochs 2"
# the tiny training list has fewer than 1000 images of each class in one epoch

ROWS = [
    key("trainer.start_epoch 2", r"trainer\.start_epoch: expected at most .*, 1, got 2", VOS),
    key("trainer.start_epoch 0", r".*trainer\.sample_number: expected at most \d+", VOS),
    key(
        "trainer.sample_number 8 --trainer.start_epoch 1", r"trainer\.sample_number: .* at least .*, 64 .*, got 8", VOS
    ),
    key("trainer.trainer_args '{start_epoch_KNN: 3}'", r"trainer\.trainer_args\.start_epoch_KNN: ", NPOS),
    key("trainer.trainer_args '{start_epoch_KNN: 2}'", r".*trainer\.trainer_args\.sample_number: ", NPOS),
    Row("frl of a classifier", f"{TRAIN} --trainer.name frl", r"{tiny}: network\.name: "),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_bad(row, command, tiny, digits, tmp_path):
    rejected(row, command, tiny, digits, tmp_path)
