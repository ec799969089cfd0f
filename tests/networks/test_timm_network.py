"""Any timm backbone in OpenOOD's network protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from openood_dream.errors import InputError
from openood_dream.networks.timm_network import TimmNetwork, backbone_name

# A model of each family, as small as timm lets it be: (name, arguments, pixels a side).
FAMILIES = {
    "resnet18": ("resnet18", {}, 32),
    "deep stem": ("resnet10t", {"channels": [8, 8, 16, 16]}, 32),
    "vision transformer": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48}, 32),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, 64),
    "mobilenet": ("mobilenetv3_small_050", {}, 64),
    "regnet": ("regnetx_002", {}, 64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_openoods_protocol(family):
    name, args, size = FAMILIES[family]
    net = TimmNetwork(name, 5, small=size <= 32, args=args).eval()
    x = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        logits = net(x)
        again, feature = net(x, return_feature=True)
        listed, stages = net(x, return_feature_list=True)
        threshold = feature.median().item()
        clipped = net.forward_threshold(x, threshold)
    assert logits.shape == (3, 5) and feature.shape == (3, net.feature_size)
    assert torch.equal(logits, again) and torch.allclose(logits, listed, atol=1e-5)
    assert len(stages) > 1 and torch.allclose(stages[-1], feature, atol=1e-5)
    weight, bias = net.get_fc()
    assert isinstance(weight, np.ndarray) and weight.shape == (5, net.feature_size) and bias.shape == (5,)
    assert np.allclose(feature.numpy() @ weight.T + bias, logits.numpy(), atol=1e-4)
    assert isinstance(net.get_fc_layer(), nn.Linear) and np.array_equal(net.get_fc_layer().weight.detach(), weight)
    expected = np.minimum(feature.numpy(), threshold) @ weight.T + bias
    assert np.allclose(clipped.numpy(), expected, atol=1e-4) and not torch.allclose(clipped, logits)


@pytest.mark.parametrize("name, args", [("resnet18", {}), ("resnet10t", {"channels": [8, 8, 16, 16]})])
def test_small_images_keep_their_size_in_the_stem(name, args):
    x = torch.randn(1, 3, 32, 32)
    sizes = {}
    for small in (False, True):
        net = TimmNetwork(name, 2, small=small, args=args).eval()
        with torch.inference_mode():
            sizes[small] = [stage.shape[-1] for stage in net(x, return_feature_list=True)[1][:-1]]
    assert sizes[True][0] == 32 and sizes[False][0] < 32 and sizes[True][-1] == 4


def test_refused_arguments():
    with pytest.raises(ValueError, match=r"\{'colour': 3\} for resnet18") as error:
        TimmNetwork("resnet18", 2, args={"colour": 3})
    assert not isinstance(error.value, InputError)


@pytest.mark.parametrize(
    "name, words", [("timm:resnet81", r"'resnet81'; did you mean .*resnet18"), ("resnet18", "timm:resnet18")]
)
def test_unknown_network(name, words):
    with pytest.raises(InputError, match=f"^a.yml: network.name: .*{words}"):
        backbone_name(name, "a.yml: network.name")
