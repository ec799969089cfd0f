"""The number format of a training, by measurement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openood_dream.device import dtype_name
from openood_dream.networks import precision
from openood_dream.networks.precision import measured_dtype, seconds

CPU = torch.device("cpu")
SHAPE = {"image_size": 8, "channels": 3, "device": CPU}


@pytest.fixture(autouse=True)
def both(monkeypatch, tmp_path):
    """A CPU that computes in both formats, and a cache folder of the test's own."""
    monkeypatch.setattr(
        precision, "pick_dtype", lambda word, device: getattr(torch, {"float32": "float32"}.get(word, "bfloat16"))
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, width))


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_faster_one_is_taken_and_kept(faster, capsys, both):
    asked = []

    def clock(one, images, dtype):
        asked.append((dtype_name(dtype), tuple(images.shape)))
        return 0.1 if dtype_name(dtype) == faster else 0.2

    found = [measured_dtype("auto", net(), **SHAPE, step_seconds=clock) for _ in range(3)]
    assert found == [getattr(torch, faster)] * 3
    assert [name for name, _ in asked] == ["float32", "bfloat16"] and asked[0][1] == (64, 3, 8, 8)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"precision auto: {faster}, with 100 ms a step")
    measured_dtype("auto", net(5), **SHAPE, step_seconds=clock)
    assert len(asked) == 4 and len(list((both / "openood-dream" / "precision").iterdir())) == 2


def test_what_is_asked_for_is_not_measured():
    def clock(*args):
        raise AssertionError("measured")

    assert measured_dtype("float32", net(), **SHAPE, step_seconds=clock) is torch.float32
    assert measured_dtype("bfloat16", net(), **SHAPE, step_seconds=clock) is torch.bfloat16


def test_measuring_leaves_the_network_and_the_random_numbers_alone():
    torch.manual_seed(3)
    one = net()
    before = {key: tensor.clone() for key, tensor in one.state_dict().items()}
    state = torch.random.get_rng_state()
    measured_dtype("auto", one, **SHAPE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in one.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())


@pytest.mark.parametrize("content", ["", "{}", '{"float32": "fast"}', "[1]"])
def test_a_damaged_result_is_measured_again(content, both):
    measured_dtype("auto", net(), **SHAPE, step_seconds=lambda *_: 1.0)
    (file,) = (both / "openood-dream" / "precision").iterdir()
    file.write_text(content)
    assert measured_dtype("auto", net(), **SHAPE, step_seconds=lambda *_: 1.0) is torch.float32
    assert "bfloat16" in file.read_text()


def test_a_step_takes_time():
    assert all(seconds(net(), torch.randn(4, 3, 8, 8), dtype) > 0 for dtype in precision.FORMATS)
