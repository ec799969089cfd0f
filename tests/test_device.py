"""Where computations run, and in which number format."""

from __future__ import annotations

import pytest
import torch

from openood_dream.device import pick_device, pick_dtype
from openood_dream.errors import InputError


def test_devices_are_torchs():
    assert pick_device("cpu") == torch.device("cpu")
    available = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert pick_device(None) == pick_device("auto") and (pick_device("auto").type == "cpu") == (not available)


@pytest.mark.parametrize("name", ["tpu", "cuda:99"])
def test_unavailable_device(name):
    with pytest.raises(InputError, match=f"^device: '{name}'"):
        pick_device(name)


def test_precision():
    cpu = torch.device("cpu")
    assert pick_dtype("float32", cpu) is torch.float32 and pick_dtype("bfloat16", cpu) is torch.bfloat16
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert pick_dtype(None, cpu) is pick_dtype("auto", cpu)
