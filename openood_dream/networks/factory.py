"""The network that the section `network` describes."""

from __future__ import annotations

from torch import nn

from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.generative.network import Generative
from openood_dream.networks.settings import AnyNetwork, GenerativeNetwork, NetworkSettings
from openood_dream.networks.timm_network import SMALL_IMAGE, TimmNetwork, backbone_name
from openood_dream.networks.trial import check_backbone


def check_network(network: AnyNetwork, *, image_size: int, num_classes: int | None = None, channels: int = 3) -> None:
    """Checks, before anything long is begun, that there is such a network, and that it fits the images.

    A classifier is built, and tried with two random images, once in a process; nothing else is left of it.

    Args:
        network: settings of a classifier or of a generative model.
        image_size: pixels a side of the images.
        num_classes: classes of a classifier; None takes `network.num_classes`.
        channels: of an image; those of a generative model stand in its own settings.

    Raises:
        InputError: names `network.name`, `network.args` or whatever does not fit, and says what was expected.
    """
    if isinstance(network, GenerativeNetwork):
        if network.image_size != image_size:
            raise network.error("image_size", f"expected dataset.image_size, {image_size}, got {network.image_size}")
        if channels != 3:
            raise network.error("channels", "says what this network sees; leave dataset.channels at 3")
        return
    _, classes = _model(network, num_classes)
    check_backbone(network, "name", "args", image_size=image_size, num_classes=classes, channels=channels)


def get_network(
    network: AnyNetwork, *, image_size: int, num_classes: int | None = None, channels: int = 3
) -> nn.Module:
    """Builds a network, with the weights of its checkpoint where the settings say `pretrained`.

    Args:
        network: settings of a classifier (`timm:<model>`) or of a generative model.
        image_size: pixels a side of the images that a classifier gets; for small ones its stem keeps their size.
            A generative model's own settings say its size.
        num_classes: classes of a classifier; None takes `network.num_classes`.
        channels: of an image that a classifier gets.

    Returns:
        The network, on the CPU.

    Raises:
        InputError: there is no such network, its arguments are refused, or its checkpoint cannot be loaded.
    """
    net: nn.Module
    if isinstance(network, GenerativeNetwork):
        net = Generative(network)
    else:
        model, classes = _model(network, num_classes)
        try:
            net = TimmNetwork(model, classes, small=image_size <= SMALL_IMAGE, channels=channels, args=network.args)
        except ValueError as error:
            raise network.error("args", str(error)) from None
    if network.pretrained:
        if not network.checkpoint:
            text = "missing, and network.pretrained loads it; for timm's own weights, network.args: {pretrained: true}"
            raise network.error("checkpoint", text)
        load_weights(net, network.checkpoint)
    return net


def _model(network: NetworkSettings, num_classes: int | None) -> tuple[str, int]:
    """timm's name of a classifier, and its number of classes."""
    model, classes = backbone_name(network.name, network.where("name")), num_classes or network.num_classes
    if classes is None:
        raise network.error("num_classes", "missing; expected an integer >= 1")
    return model, classes
