"""Weights from files that other programs wrote."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openood_dream.errors import InputError
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.openood import compat


def network(classes: int = 6, width: int = 16) -> TimmNetwork:
    return TimmNetwork("resnet10t", classes, small=True, args={"channels": [8, 8, 16, width]})


def plain_network(classes: int = 6) -> TimmNetwork:
    """Of the layers that OpenOOD's ResNets have."""
    return TimmNetwork("resnet18", classes, small=True)


def timms(state: dict) -> dict:
    """By timm's names: without what sets the backbone apart."""
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS = {
    "ours": lambda s: s,
    "DataParallel": lambda s: under("module.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled, then parallel": lambda s: under("module._orig_mod.", s),
    "a part of it compiled": lambda s: {name.replace("backbone.", "backbone._orig_mod."): t for name, t in s.items()},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
    "model": lambda s: {"model": s, "best": np.float64(0.5)},
    "net": lambda s: {"net": under("module.", s)},
    "one in another": lambda s: {"model": {"state_dict": s}},
    "an average beside it": lambda s: {"state_dict": s, "state_dict_ema": {k: t + 1 for k, t in s.items()}},
    "an average alone": lambda s: {"ema": s},
    "averaged by torch": lambda s: {"n_averaged": torch.tensor(3), **under("module.", s)},
    "Lightning": lambda s: {
        "state_dict": {**under("model.", s), "criterion.weight": torch.ones(6)},
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.5",
    },
    "Lightning of a compiled network": lambda s: {"state_dict": under("net._orig_mod.", s)},
    "timm": timms,
    "timm's training": lambda s: {"state_dict": under("module.", timms(s)), "args": argparse.Namespace(lr=0.1)},
    "before torch counted batches": lambda s: {k: t for k, t in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, tmp_path):
    source, net = network(), network()
    torch.save(FORMS[form](source.state_dict()), tmp_path / "other.ckpt")
    load_weights(net, tmp_path / "other.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize("file", ["model.safetensors", "best.ckpt"])
def test_safetensors(file, tmp_path):
    source, net = network(), network()
    save_file({name: tensor.contiguous() for name, tensor in timms(source.state_dict()).items()}, tmp_path / file)
    load_weights(net, tmp_path / file)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), net.parameters(), strict=True))


def test_openoods_names(tmp_path):
    source, net = plain_network(), plain_network()
    state = {name.replace(".downsample.", ".shortcut."): t for name, t in timms(source.state_dict()).items()}
    assert any("shortcut" in name for name in state)
    torch.save(state, tmp_path / "best.ckpt")
    load_weights(net, tmp_path / "best.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), net.parameters(), strict=True))


@pytest.mark.skipif(not compat.installed("openood"), reason="OpenOOD is not installed")
@pytest.mark.parametrize("size", [32, 64])
def test_openoods_network_is_timms(size, tmp_path):
    """The names mean the same layers: the logits are equal."""
    file = Path(compat.folder("openood"), "networks", f"resnet18_{size}x{size}.py")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs, net = getattr(module, f"ResNet18_{size}x{size}")(num_classes=6), plain_network()
    x = torch.randn(4, 3, size, size)
    theirs.train()(x)  # statistics of batch normalisation that are none of the first ones
    torch.save(theirs.state_dict(), tmp_path / "best.ckpt")
    load_weights(net, tmp_path / "best.ckpt")
    with torch.inference_mode():
        assert torch.allclose(theirs.eval()(x), net.eval()(x), atol=1e-4)


def renamed(state: dict) -> dict:
    return {name.replace("fc.", "head."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content, words",
    [
        (
            network(classes=3).state_dict(),
            r"fc\.weight is 3x16 in the file and 6x16 in the network; of .* \d+ tensors 2 of another shape\)",
        ),
        (
            timms(network(width=8).state_dict()),
            r"backbone\.layer4\.0\.conv1\.weight is 8x16x3x3 in the file and 16x16x3x3 in the network; .* of another shape\)",
        ),
        (
            renamed(network().state_dict()),
            r"fc\.weight is not in the file and 6x16 .*, and head\.weight 6x16 .*; .* 2 missing, 2 too many\)",
        ),
        (
            {**network().state_dict(), "more": torch.ones(2)},
            r"more 2 of the file is not in the network; .* 1 too many\)",
        ),
    ],
)
def test_the_first_difference_is_told(content, words, tmp_path):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=rf"other\.ckpt: the weights do not fit .*{words}.*network\.checkpoint"):
        load_weights(network(), tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    "content, words",
    [
        ({}, r"no tensors by name \(dream\.quality\.checkpoint\)"),
        ({"state_dict": {"epoch": 3}}, "no tensors by name"),
        ({"model": torch.nn.Linear(2, 2)}, r"not a readable checkpoint .*torch\.nn\.modules\.linear\.Linear"),
        (
            {**network().state_dict(), "fc.bias": torch.full((6,), torch.nan)},
            r"fc\.bias is not finite \(dream\.quality\.checkpoint\)",
        ),
    ],
)
def test_files_that_are_no_weights(content, words, tmp_path):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=rf"^{tmp_path}/other\.ckpt: .*{words}"):
        load_weights(network(), tmp_path / "other.ckpt", "dream.quality.checkpoint")


def test_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"best\.ckpt: expected a regular file"):
        load_weights(network(), tmp_path / "best.ckpt")
