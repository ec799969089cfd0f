"""The generative models as networks of a config: on a loader's normalised images, with or without the high frequencies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from openood_dream import data
from openood_dream.config import GenerativeNetwork, InputError
from openood_dream.generative.frequency import grey, with_high_frequency
from openood_dream.generative.glow import Glow
from openood_dream.generative.pixelcnnpp import PixelCNNpp
from openood_dream.generative.vae import VAE
from openood_dream.networks import autocast

MODELS: dict[str, type[nn.Module]] = {"vae": VAE, "glow": Glow, "pixelcnnpp": PixelCNNpp}


class Generative(nn.Module):
    """A generative model of a loader's images; `frequency` says whether it also models their high-frequency channel.

    `forward(data)` is the bound that training raises, in nats (B,).
    """

    def __init__(self, network: GenerativeNetwork) -> None:
        super().__init__()
        self.channels, self.size = network.channels, network.image_size
        shape = network.model_dump(exclude=set(GenerativeNetwork.model_fields))
        self.model = MODELS[network.name](self.channels + network.frequency, self.size, **shape)
        mean, std = data.NORMALIZATION.get(network.normalization_type, ((0.5,) * 3,) * 2)
        self.register_buffer("frequency", torch.tensor(network.frequency))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def dimensions(self) -> int:
        """Numbers in an image, the high-frequency channel included."""
        return self.model.channels * self.size**2

    def image(self, batch: torch.Tensor) -> torch.Tensor:
        """The uint8 image (B, channels, S, S) of normalised floats (B, 3, S, S); InputError for any other shape."""
        if batch.shape[1:] != (3, self.size, self.size):
            raise InputError(
                f"network.image_size: expected images of 3x{self.size}x{self.size}, "
                f"got {'x'.join(map(str, batch.shape[1:]))}; set dataset.image_size to what the network was trained on"
            )
        x = (batch * self.std + self.mean) * 255
        return (grey(x) if self.channels == 1 else x).round().clamp(0, 255).to(torch.uint8)

    def pixels(self, batch: torch.Tensor) -> torch.Tensor:
        """What the model sees: the image, and the high frequencies where it was trained with them."""
        x = self.image(batch)
        return with_high_frequency(x) if self.frequency else x

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model.bound(self.pixels(batch))

    def load_state_dict(self, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """RuntimeError, beside torch's own, for a checkpoint of the other frequency setting."""
        there = bool(state.get("frequency", self.frequency))
        if there != bool(self.frequency):
            words = {True: "with the high-frequency channel", False: "without the high-frequency channel"}
            raise RuntimeError(f"it was trained {words[there]}, network.frequency is {str(not there).lower()}")
        return super().load_state_dict(state, *args, **kwargs)


@torch.inference_mode()
def pixel_probability(
    net: Generative, loader: DataLoader, device: torch.device, dtype: torch.dtype = torch.float32
) -> float:
    """2^-(bits/dim), the geometric mean of the probabilities that the training bound gives a loader's subpixels.

    It stands where classifiers have their accuracy on validation images: larger is better, 1 the best.
    """
    net.eval()
    accelerators = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(accelerators, device_type=device.type), autocast(device, dtype):
        torch.manual_seed(0)  # the same draws each time, so that only the weights make a difference
        nats = sum(net(batch["data"].to(device)).sum().item() for batch in loader)
    return math.exp(nats / len(loader.dataset) / net.dimensions)
