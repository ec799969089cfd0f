"""The small VGG-like network of the fast recipe."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from openood_dream.errors import InputError
from openood_dream.networks.fast import RIDGE, FastVGG, norm
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.pipelines import train as training


def test_it_is_one_of_timms_and_keeps_openoods_protocol():
    assert timm.is_model("fast_vgg")
    net = TimmNetwork("fast_vgg", 10, small=True).eval()
    x = torch.randn(2, 3, 32, 32)
    logits, feature = net(x, return_feature=True)
    assert logits.shape == (2, 10) and feature.shape == (2, 256) == (2, net.feature_size)
    listed, stages = net(x, return_feature_list=True)
    torch.testing.assert_close(listed, logits)
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (24, 31, 31), (64, 15, 15), (256, 7, 7), (256, 3, 3), (256,)
    ]  # fmt: skip
    assert TimmNetwork("fast_vgg", 10, channels=1)(x[:, :1]).shape == (2, 10)
    assert 1.9e6 < sum(p.numel() for p in net.parameters()) < 2.1e6


def test_the_first_layer_whitens_patches():
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(200, 3, 34, 34), 3, stride=1)  # neighbours are alike
    net = FastVGG()
    net.whiten(images)
    slow = torch.stack(
        [image[:, y : y + 2, x : x + 2].flatten() for image in images[:50] for y in range(31) for x in range(31)]
    )
    out = net.patches(images[:50]).permute(0, 2, 3, 1).reshape(-1, 24)
    torch.testing.assert_close(out[:, :12], -out[:, 12:], rtol=0, atol=1e-6)
    covariance = out[:, :12].T @ out[:, :12] / len(out)
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 0.1
    variances = torch.linalg.eigvalsh(slow.T @ slow / len(slow)).flip(0)
    torch.testing.assert_close(covariance.diagonal(), variances / (variances + RIDGE), rtol=0.1, atol=0.02)
    assert not net.patches.weight.requires_grad and net.patches.bias.requires_grad


def test_convolutions_begin_as_the_identity_and_norms_only_shift():
    net = FastVGG()
    x = torch.randn(1, 24, 8, 8)
    torch.testing.assert_close(net.blocks[0].conv1(x)[:, :24], x)
    assert norm(4).momentum == 0.4 and not norm(4).weight.requires_grad and norm(4).bias.requires_grad


def test_a_training_whitens_it_from_its_own_images(tiny):
    network = {"name": "timm:fast_vgg", "args": {"widths": [8, 8, 8]}, "num_classes": 6}
    experiment = tiny.method("base").changed({"network": network})
    first, again = (training.new_network(experiment).backbone.patches.weight for _ in range(2))
    expected = FastVGG([8, 8, 8])
    images = experiment.data.images("dataset", "train")
    expected.whiten(images.__getitems__(range(len(images)))["data"])
    assert torch.equal(first, again) and torch.equal(first, expected.patches.weight)


def test_there_are_no_weights_to_be_had(tiny):
    network = {"name": "timm:fast_vgg", "args": {"pretrained": True}, "num_classes": 6}
    with pytest.raises(InputError, match=r"network\.args"):
        training.check_training(tiny.method("base").changed({"network": network}))
