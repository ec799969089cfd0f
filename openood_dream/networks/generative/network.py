"""The generative models as networks of a config: on a loader's normalised images, with or without high frequencies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.datasets.images import Transform
from openood_dream.networks.features import outputs
from openood_dream.networks.generative.base import DensityModel
from openood_dream.networks.generative.frequency import grey, with_high_frequency
from openood_dream.networks.generative.glow import Glow
from openood_dream.networks.generative.pixelcnnpp import PixelCNNpp
from openood_dream.networks.generative.vae import VAE
from openood_dream.networks.settings import GenerativeNetwork

MODELS: dict[str, type[DensityModel]] = {"vae": VAE, "glow": Glow, "pixelcnnpp": PixelCNNpp}


class Generative(nn.Module):
    """A generative model of a loader's images; `frequency` says whether it also models their high-frequency channel."""

    frequency: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: GenerativeNetwork) -> None:
        """Builds the model with new weights.

        Args:
            network: which model, and its sizes.
        """
        super().__init__()
        self.settings, self.channels, self.size = network, network.channels, network.image_size
        shape = network.model_dump(exclude=set(GenerativeNetwork.model_fields))
        self.model = MODELS[network.name](self.channels + network.frequency, self.size, **shape)
        transform = Transform(self.size, self.size, network.normalization_type or "")
        self.register_buffer("frequency", torch.tensor(network.frequency))
        self.register_buffer("mean", transform.mean, persistent=False)
        self.register_buffer("std", transform.std, persistent=False)

    @property
    def dimensions(self) -> int:
        """Numbers in an image, the high-frequency channel included."""
        return self.model.channels * self.size**2

    def image(self, batch: torch.Tensor) -> torch.Tensor:
        """The images behind a loader's batch.

        Args:
            batch: normalised floats (B, 3, S, S).

        Returns:
            uint8 (B, channels, S, S).

        Raises:
            InputError: the batch has another shape.
        """
        if batch.shape[1:] != (3, self.size, self.size):
            found = "x".join(map(str, batch.shape[1:]))
            raise self.settings.error(
                "image_size",
                f"expected images of 3x{self.size}x{self.size}, got {found}; "
                "set dataset.image_size to what the network was trained on",
            )
        x = (batch * self.std + self.mean) * 255
        return (grey(x) if self.channels == 1 else x).round().clamp(0, 255).to(torch.uint8)

    def pixels(self, batch: torch.Tensor) -> torch.Tensor:
        """What the model sees of a batch (B, 3, S, S): the image, and its high frequencies if trained with them."""
        return self.with_frequency(self.image(batch))

    def with_frequency(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (B, channels, S, S) with the high-frequency channel, where the model was trained with it."""
        return with_high_frequency(images, self.settings.blur) if self.frequency else images

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The bound on log p that training raises, in nats (B,), of normalised images (B, 3, S, S)."""
        return self.model.bound(self.pixels(batch))

    def load_state_dict(self, state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As torch's.

        Args:
            state: tensors by name.
            args: torch's further arguments.
            kwargs: torch's further arguments.

        Raises:
            ValueError: the state is of a model of the other frequency setting.
            RuntimeError: torch's reasons.
        """
        there = bool(state.get("frequency", self.frequency))
        if there != bool(self.frequency):
            words = {True: "with the high-frequency channel", False: "without the high-frequency channel"}
            raise ValueError(f"it was trained {words[there]}, network.frequency is {str(not there).lower()}")
        return super().load_state_dict(state, *args, **kwargs)


def pixel_probability(
    net: Generative, loader: DataLoader, device: torch.device, dtype: torch.dtype = torch.float32
) -> float:
    """2^-(bits/dim), the geometric mean of the probabilities that the training bound gives a loader's subpixels.

    It stands where classifiers have their accuracy on validation images: larger is better, 1 the best.

    Args:
        net: the model; it is put on `device` and in evaluation mode.
        loader: gives batches with images as `data`; it is iterated once.
        device: where the model runs.
        dtype: number format of the computation.

    Returns:
        A number between 0 and 1.
    """
    accelerators = [] if device.type == "cpu" else [device.index or 0]
    nats, images = 0.0, 0
    with torch.random.fork_rng(accelerators, device_type=device.type):
        torch.manual_seed(0)  # the same draws each time, so that only the weights make a difference
        for (bound,), _ in outputs(net, loader, device, dtype=dtype, bar=False):
            nats, images = nats + bound.sum().item(), images + len(bound)
    return math.exp(nats / images / net.dimensions)
