"""A network is tried with two images before anything long is begun."""

from __future__ import annotations

import pytest
import torch

from openood_dream.errors import InputError
from openood_dream.networks import trial
from openood_dream.networks.factory import check_network, get_network
from openood_dream.networks.settings import NetworkSettings

SMALL = {"name": "timm:resnet10t", "args": {"channels": [8, 8, 16, 16]}}


def check(size: int = 16, channels: int = 3, **keys) -> None:
    settings = NetworkSettings(**{**SMALL, "num_classes": 6, **keys})
    check_network(settings, image_size=size, channels=channels)


def test_no_random_number_is_consumed():
    before = torch.get_rng_state()
    check(num_classes=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_once_in_a_process(monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setattr(trial, "TimmNetwork", lambda *a, made=trial.TimmNetwork, **k: tried.append(a) or made(*a, **k))
    check()
    check()
    assert len(tried) == 1
    check(num_classes=7)
    assert len(tried) == 2


def test_grey_images():
    check(channels=1)
    net = get_network(NetworkSettings(**SMALL), image_size=16, num_classes=6, channels=1)
    assert net(torch.randn(2, 1, 16, 16)).shape == (2, 6)


def test_the_remedy_for_a_vision_transformer_works():
    model = {"name": "timm:vit_tiny_patch16_224", "args": {"depth": 1}}
    with pytest.raises(InputError, match=r"^network\.args: .*3x16x16.* add img_size: 16 .*224 pixels"):
        check(**model)
    model["args"]["img_size"] = 16
    check(**model)
    model["args"].pop("img_size")
    check(**model, size=224)


@pytest.mark.parametrize("args", [{"features_only": False}, {"in_chans": 3}, {"checkpoint_path": None}])
def test_arguments_that_change_nothing(args):
    check(args=SMALL["args"] | args)


def test_without_a_text_the_error_has_a_name(monkeypatch):
    def create(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(InputError, match=r"^network\.args: .*\(FileNotFoundError\)"):
        check()
