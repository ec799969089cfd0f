"""Any timm backbone in OpenOOD's network protocol, and where and in which precision it runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from openood_dream.config import InputError
from openood_dream.networks import TimmNetwork, get_network, load_weights, pick_device, pick_dtype

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
def test_every_family_answers_in_openoods_protocol(family):
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
def test_small_images_keep_their_pixels_in_the_stem(name, args):
    x = torch.randn(1, 3, 32, 32)
    sizes = {}
    for small in (False, True):
        net = TimmNetwork(name, 2, small=small, args=args).eval()
        with torch.inference_mode():
            sizes[small] = [stage.shape[-1] for stage in net(x, return_feature_list=True)[1][:-1]]
    assert sizes[True][0] == 32 and sizes[False][0] < 32 and sizes[True][-1] == 4


def config_with(tiny, **network):
    config = tiny.config()
    config.network.update(network)
    return config


def test_the_config_names_network_classes_and_arguments(tiny):
    net = get_network(tiny.config())
    assert net.get_fc()[0].shape == (6, 16)
    size = tiny.config("--dataset.image_size", "128", "--dataset.pre_size", "128")
    assert get_network(size).backbone.maxpool is not None  # large images keep the usual stem
    assert isinstance(net.backbone.maxpool, nn.Identity)


def test_an_unknown_network_is_named_with_the_nearest_ones(tiny):
    with pytest.raises(InputError, match=r"timm has no model 'resnet81'; did you mean .*resnet18"):
        get_network(config_with(tiny, name="timm:resnet81"))
    with pytest.raises(
        InputError, match=r"tiny\.yml: network\.name: unknown network 'resnet18'.*for example timm:resnet18"
    ):
        get_network(config_with(tiny, name="resnet18"))
    with pytest.raises(InputError, match=r"network\.args: timm refuses \{'colour': 3\} for resnet18"):
        get_network(config_with(tiny, name="timm:resnet18", args={"colour": 3}))


def test_a_checkpoint_is_loaded_where_the_network_is_pretrained(tiny, tmp_path):
    source = get_network(tiny.config())
    torch.save(source.state_dict(), tmp_path / "best.ckpt")
    net = get_network(config_with(tiny, pretrained=True, checkpoint=str(tmp_path / "best.ckpt")))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), net.state_dict().values(), strict=True))


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("loading a checkpoint ran its code",))


def test_a_bad_checkpoint_is_named_and_runs_no_code(tiny, tmp_path):
    net = get_network(tiny.config())
    with pytest.raises(InputError, match=r"none\.ckpt: no such checkpoint \(network\.checkpoint\)"):
        load_weights(net, tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"fc.weight": Trap()}, tmp_path / "trap.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name in ("text.ckpt", "trap.ckpt"):
        with pytest.raises(InputError, match=rf"{name}: not a readable checkpoint"):
            load_weights(net, tmp_path / name)
    torch.save(get_network(config_with(tiny, args={"channels": [8, 8, 8, 8]})).state_dict(), tmp_path / "other.ckpt")
    for name in ("other.ckpt", "list.ckpt"):
        with pytest.raises(InputError, match=rf"{name}: the weights do not fit the network .*check network\.name"):
            load_weights(net, tmp_path / name)


def test_devices_are_those_of_torch_and_a_bad_one_is_named():
    assert pick_device("cpu") == torch.device("cpu")
    available = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert pick_device(None) == pick_device("auto") and (pick_device("auto").type == "cpu") == (not available)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"device: 'cuda' cannot be used here .*expected auto, cpu, cuda or mps"):
            pick_device("cuda")
    with pytest.raises(InputError, match=r"device: 'tpu' cannot be used here"):
        pick_device("tpu")


def test_precision_is_as_asked_for():
    cpu = torch.device("cpu")
    assert pick_dtype("float32", cpu) is torch.float32 and pick_dtype("bfloat16", cpu) is torch.bfloat16
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16) and pick_dtype(None, cpu) is pick_dtype(
        "auto", cpu
    )
