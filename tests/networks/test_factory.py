"""Networks and their weights by settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openood_dream.errors import InputError
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import check_network, get_network
from openood_dream.networks.generative.network import Generative
from openood_dream.networks.settings import NetworkSettings, VAENetwork

SMALL = {"name": "timm:resnet10t", "args": {"channels": [8, 8, 16, 16]}}


def network(**keys) -> nn.Module:
    return get_network(NetworkSettings(**{**SMALL, "num_classes": 6, **keys}), image_size=16)


def test_classes_size_and_arguments():
    net = network()
    assert net.get_fc()[0].shape == (6, 16) and isinstance(net.backbone.maxpool, nn.Identity)
    large = get_network(NetworkSettings(**SMALL), image_size=128, num_classes=3)
    assert large.get_fc()[0].shape == (3, 16) and not isinstance(large.backbone.maxpool, nn.Identity)


def test_generative_network():
    assert isinstance(get_network(VAENetwork(name="vae", image_size=8, width=4), image_size=8), Generative)


@pytest.mark.parametrize(
    "keys, key",
    [
        ({"name": "timm:resnet81"}, "name"),
        ({"name": "resnet18"}, "name"),
        ({"args": {"colour": 3}}, "args"),
        ({"num_classes": None}, "num_classes"),
        ({"pretrained": True}, "checkpoint"),
    ],
)
def test_impossible_settings(keys, key):
    with pytest.raises(InputError, match=rf"^network\.{key}: "):
        network(**keys)
    if key == "name":
        with pytest.raises(InputError, match=r"^network\.name: "):
            check_network(NetworkSettings(**keys), image_size=16, num_classes=6)


def test_the_file_is_named(tiny):
    settings = tiny.config("--network.name", "timm:resnet81").network
    with pytest.raises(InputError, match=r"^command line: network\.name: .*resnet18"):
        check_network(settings, image_size=16, num_classes=6)


def test_pretrained_loads_the_checkpoint(tmp_path):
    source = network()
    torch.save(source.state_dict(), tmp_path / "best.ckpt")
    net = network(pretrained=True, checkpoint=str(tmp_path / "best.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), net.state_dict().values(), strict=True))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("loading a checkpoint ran its code",))


def test_bad_checkpoints_are_named_and_run_no_code(tmp_path):
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"fc.weight": Trap()}, tmp_path / "trap.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save(network(args={"channels": [8, 8, 8, 8]}).state_dict(), tmp_path / "other.ckpt")
    net = network()
    for name in ("none", "text", "trap", "list", "other"):
        with pytest.raises(InputError, match=rf"{name}\.ckpt: "):
            load_weights(net, tmp_path / f"{name}.ckpt")
