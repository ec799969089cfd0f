"""The network that the section `network` describes, and its weights."""

from __future__ import annotations

import textwrap
from pathlib import Path

from torch import nn

from openood_dream.errors import InputError
from openood_dream.networks.generative.network import Generative
from openood_dream.networks.settings import AnyNetwork, GenerativeNetwork, NetworkSettings
from openood_dream.networks.timm_network import SMALL_IMAGE, TimmNetwork, backbone_name
from openood_dream.store import files


def check_network(network: AnyNetwork) -> None:
    """Raises InputError where there is no such network; builds nothing."""
    if isinstance(network, NetworkSettings):
        backbone_name(network.name, network.where("name"))


def get_network(network: AnyNetwork, *, image_size: int, num_classes: int | None = None) -> nn.Module:
    """Builds a network, with the weights of its checkpoint where the settings say `pretrained`.

    Args:
        network: settings of a classifier (`timm:<model>`) or of a generative model.
        image_size: pixels a side of the images that a classifier gets; for small ones its stem keeps their size.
            A generative model's own settings say its size.
        num_classes: classes of a classifier; None takes `network.num_classes`.

    Returns:
        The network, on the CPU.

    Raises:
        InputError: there is no such network, its arguments are refused, or its checkpoint cannot be loaded.
    """
    net = (
        Generative(network) if isinstance(network, GenerativeNetwork) else _classifier(network, image_size, num_classes)
    )
    if network.pretrained:
        if not network.checkpoint:
            text = "missing, and network.pretrained loads it; for timm's own weights, network.args: {pretrained: true}"
            raise network.error("checkpoint", text)
        load_weights(net, network.checkpoint)
    return net


def _classifier(network: NetworkSettings, image_size: int, num_classes: int | None) -> TimmNetwork:
    model, classes = backbone_name(network.name, network.where("name")), num_classes or network.num_classes
    if classes is None:
        raise network.error("num_classes", "missing; expected an integer >= 1")
    try:
        return TimmNetwork(model, classes, small=image_size <= SMALL_IMAGE, args=network.args)
    except ValueError as error:
        raise network.error("args", str(error)) from None


def load_weights(net: nn.Module, checkpoint: str | Path) -> None:
    """Loads the weights of a checkpoint into a network.

    Args:
        net: the network; its weights are overwritten.
        checkpoint: file with tensors by name, as `torch.save(net.state_dict(), file)` writes it.

    Raises:
        InputError: the file is missing, damaged, or of another network.
    """
    try:
        remedy = (
            "expected tensors by name, saved by torch.save(net.state_dict(), file): restore it, or delete its folder "
            "and train again"
        )
        state = files.read_checkpoint(Path(checkpoint), remedy)
    except FileNotFoundError:
        text = f"{checkpoint}: no such checkpoint (network.checkpoint); train first or check the path"
        raise InputError(text) from None
    try:
        net.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = textwrap.shorten(str(error).splitlines()[-1], 160, placeholder=" ...")
        text = f"{checkpoint}: the weights do not fit the network ({reason}); check network.name and num_classes"
        raise InputError(text) from None
