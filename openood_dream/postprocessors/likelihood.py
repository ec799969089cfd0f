"""Detectors of generative networks: FRL's, and the likelihood and input complexity that it is compared with.

Confidence is in bits an image. Scores do not depend on how images are batched: all images share their draws, from a
fixed seed. What takes long is kept on disk, for the same images and weights.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torchvision.io import encode_png
from tqdm import tqdm

from openood_dream.errors import InputError
from openood_dream.networks.features import outputs
from openood_dream.networks.generative.base import DensityModel
from openood_dream.networks.generative.network import Generative
from openood_dream.postprocessors.base import Images, Postprocessor, postprocessor
from openood_dream.postprocessors.settings import CodeArguments, LikelihoodArguments
from openood_dream.store import artifacts, tensors

BATCH = 128
COMPRESSION = 9


def code_lengths(images: torch.Tensor) -> torch.Tensor:
    """L(x): the bits of each image (N, C, S, S), uint8, as a PNG of the highest compression; in parallel, (N,) float64."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(lambda image: len(encode_png(image, COMPRESSION)), images)
        return 8.0 * torch.tensor(list(sizes), dtype=torch.float64)


def log_likelihood(net: Generative, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """log2 p of images, with their high-frequency channel where the network was trained with it.

    Args:
        net: the network; it is put on `device` and in evaluation mode.
        images: uint8 (N, C, S, S), of as many channels as the network's images have.
        device: where the network runs.

    Returns:
        Bits, (N,), float64 on the CPU.
    """
    model = net.to(device).eval().model
    noise = draws(model, device)
    with torch.inference_mode():
        return batched(lambda x: model.log_prob(net.with_frequency(x), noise), images, device)


def draws(model: DensityModel, device: torch.device) -> torch.Tensor | None:
    """The noise for `log_prob` of a model, on a device; the same each time."""
    noise = model.draw_noise(torch.Generator().manual_seed(0))
    return None if noise is None else noise.to(device)


def batched(score: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Scores images in batches.

    Args:
        score: takes images (B, C, S, S) on `device` to nats (B,).
        images: (N, C, S, S).
        device: where they are scored.

    Returns:
        Bits, (N,), float64 on the CPU.
    """
    parts = tqdm(images.split(BATCH), desc="score", unit="batch", leave=False, delay=2)
    return torch.cat([score(part.to(device)).double().cpu() for part in parts]) / math.log(2)


def uint8_images(net: Generative, loader: Iterable[dict[str, Any]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The images of a loader as a generative network takes them.

    Args:
        net: the network; it is put on `device`.
        loader: gives batches with normalised images as `data` and their labels as `label`.
        device: where they are converted.

    Returns:
        Images (N, C, S, S), uint8, and labels (N,), both on the CPU.
    """
    pairs = [(images, labels) for (images,), labels in outputs(net.to(device).image, loader, device, bar=False)]
    return tuple(torch.cat(column) for column in zip(*pairs))


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of tensors' bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


# -------------------------------------------------------------------------------------------------------- detectors


class LikelihoodScore(Postprocessor):
    """What the detectors of generative networks share: they see images, and predict no class."""

    runs_network = True
    generative = True

    def confidence(self, images: Images) -> torch.Tensor:
        """The score of each image, (N,)."""
        net: Any = images.net
        return self.score(net, uint8_images(net, images.loader, images.device)[0], images.device)

    def prediction(self, images: Images) -> torch.Tensor:
        """-1 for each image, (N,)."""
        return torch.full((len(images.labels),), -1)

    def score(self, net: Generative, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Scores images that are in memory.

        Args:
            net: the network.
            images: uint8 (N, C, S, S), of as many channels as the network's images have.
            device: where the network runs.

        Returns:
            One number for each image, (N,), float64 on the CPU.

        Raises:
            InputError: the detector is not for this network.
        """
        raise NotImplementedError

    def _log_likelihood(self, net: Generative, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        inputs = {"weights": digest(net.state_dict().values()), "model": type(net.model).__name__}
        make = functools.partial(log_likelihood, net, images, device)
        return self._kept("log-likelihood", images, inputs, make)

    def _code_lengths(self, images: torch.Tensor) -> torch.Tensor:
        return self._kept("code-length", images, {"code": f"png {COMPRESSION}"}, lambda: code_lengths(images))

    def _kept(
        self, stage: str, images: torch.Tensor, inputs: dict[str, Any], make: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """The numbers (N,) that `make` computes of uint8 images: computed once for the same images and inputs."""

        def write(folder: Path) -> None:
            tensors.write_tensors(folder / "bits.safetensors", bits=make())

        inputs = {"images": digest([images]), "shape": list(images.shape), **inputs}
        artifact = artifacts.build(self.args.cache_dir, stage, inputs, write)
        return tensors.read_tensors(artifact.path / "bits.safetensors", bits=1)["bits"]


@postprocessor("likelihood", LikelihoodArguments)
class Likelihood(LikelihoodScore):
    """log2 p(x).

    Source: Bishop, Novelty detection and neural network validation, 1994; that it fails on natural images: Nalisnick et
    al., Do Deep Generative Models Know What They Don't Know?, ICLR 2019.
    """

    def score(self, net: Generative, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """log2 p of `images` under `net`, which runs on `device`, (N,)."""
        return self._log_likelihood(net, images, device)


@postprocessor("input_complexity", CodeArguments)
class InputComplexity(LikelihoodScore):
    """log2 p(x) + L(x), where L is the length of the image's PNG in bits; with units nats, ln p(x) + L(x).

    Source: Serra et al., Input Complexity and Out-of-distribution Detection with Likelihood-based Generative Models,
    ICLR 2020.
    """

    def score(self, net: Generative, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """log2 p of `images` under `net`, which runs on `device`, plus their code lengths, (N,)."""
        unit = math.log(2) if self.args.units == "nats" else 1.0
        return unit * self._log_likelihood(net, images, device) + self._code_lengths(images)


@postprocessor("frl", CodeArguments)
class FRL(InputComplexity):
    """log2 p(x, x_H) + L(x), where x_H is the high-frequency channel; with units nats, ln p(x, x_H) + L(x).

    Source: Cai & Li, Out-of-distribution Detection via Frequency-regularized Generative Models, WACV 2023, Sec. 3.3.
    """

    def score(self, net: Generative, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """As input complexity, of `images` with high frequencies under `net`, which runs on `device`, (N,)."""
        if not net.frequency:
            raise InputError(
                "postprocessor.name: frl needs a network trained with trainer.frequency true; "
                "this one was trained without the high-frequency channel, use input_complexity"
            )
        return super().score(net, images, device)
