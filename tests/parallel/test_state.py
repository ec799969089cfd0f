"""The resume format: what is written is what is read, and random numbers and batches go on."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from openood_dream.errors import InputError
from openood_dream.parallel.processes import Processes
from openood_dream.parallel.state import Batches, read_state, set_random_state, write_state

ALONE = Processes(torch.device("cpu"))


def batches() -> Batches:
    return Batches(DataLoader(range(10), batch_size=4, shuffle=True))


def test_random_numbers_and_batches_go_on(tmp_path):
    rows = batches()
    for _ in range(5):  # two into the second pass
        next(rows)
    torch.rand(3)
    write_state(tmp_path / "a.state", ALONE, {"done": 5, "weights": torch.ones(2)}, rows)
    expected = [next(rows).tolist() for _ in range(4)], torch.rand(3)

    torch.manual_seed(99)
    again = batches()
    state = read_state(tmp_path / "a.state", ALONE)
    set_random_state(state, ALONE, again)
    assert state["done"] == 5 and torch.equal(state["weights"], torch.ones(2))
    assert [next(again).tolist() for _ in range(4)] == expected[0]
    assert torch.equal(torch.rand(3), expected[1])


def test_no_file(tmp_path):
    assert read_state(tmp_path / "a.state", ALONE) is None


def test_damaged_file(tmp_path):
    (tmp_path / "a.state").write_bytes(b"no state")
    with pytest.raises(InputError, match=r"a\.state.*delete it to start anew"):
        read_state(tmp_path / "a.state", ALONE)


def test_another_number_of_processes(tmp_path):
    write_state(tmp_path / "a.state", ALONE, {})
    two = Processes(torch.device("cpu"))
    two.count = 2
    with pytest.raises(InputError, match=r"a\.state: begun by 1 processes, this are 2"):
        read_state(tmp_path / "a.state", two)


def test_batches_of_any_length():
    rows = batches()
    seen = torch.cat([next(rows) for _ in range(6)])  # two passes of 4, 4 and 2
    assert seen[:10].sort().values.tolist() == seen[10:].sort().values.tolist() == list(range(10))
