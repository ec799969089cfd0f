"""OOD scores of generative models: FRL's, and the likelihood, input complexity and likelihood regret it is compared with.

Confidence is larger for in-distribution images, in bits an image. Scores do not depend on how images are batched: all
images share their draws, from a fixed seed.
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
from pydantic import Field
from torch import nn
from torch.distributions import Normal, kl_divergence
from torchvision.io import encode_png
from tqdm import tqdm

from openood_dream import store
from openood_dream.config import InputError, Section
from openood_dream.generative.frequency import with_high_frequency
from openood_dream.generative.vae import VAE, prior
from openood_dream.postprocessors import Images, Postprocessor, postprocessor

BATCH = 128
COMPRESSION = 9


def code_lengths(images: torch.Tensor) -> torch.Tensor:
    """L(x): the bits of each image (N, C, S, S), uint8, as a PNG of the highest compression; in parallel, (N,) float64."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.map(lambda image: len(encode_png(image, COMPRESSION)), images)
        return 8.0 * torch.tensor(list(sizes), dtype=torch.float64)


def cached(
    cache_dir: str | Path, stage: str, images: torch.Tensor, inputs: dict[str, Any], make: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """The numbers (N,) that `make` computes of uint8 images: computed once for the same images and inputs, then read."""

    def write(folder: Path) -> None:
        store.write_tensors(folder / "bits.safetensors", bits=make())

    whole = {"images": digest([images]), "shape": list(images.shape), **inputs}
    return store.read_tensors(store.build(cache_dir, stage, whole, write).path / "bits.safetensors")["bits"]


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of tensors' bytes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


def batched(
    score: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, device: torch.device, size: int = BATCH
) -> torch.Tensor:
    """`score`, in nats, of images (N, C, S, S), `size` at once, in bits (N,) float64 on the CPU."""
    parts = tqdm(images.split(size), desc="score", unit="batch", leave=False, delay=2)
    return torch.cat([score(part.to(device)).double().cpu() for part in parts]) / math.log(2)


@torch.inference_mode()
def log_likelihood(net: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """log2 p of uint8 images (N, C, S, S), or of (x, x_H) where the network was trained with that, (N,) float64."""
    model = net.to(device).eval().model
    noise = draws(model, device)
    return batched(lambda x: model.log_prob(with_high_frequency(x) if net.frequency else x, noise), images, device)


def draws(model: nn.Module, device: torch.device) -> torch.Tensor | None:
    """The noise of `model.log_prob`, the same each time."""
    noise = model.draw_noise(torch.Generator().manual_seed(0))
    return None if noise is None else noise.to(device)


def regret(model: VAE, x: torch.Tensor, noise: torch.Tensor, steps: int, lr: float) -> torch.Tensor:
    """How much a posterior of its own raises the bound of each image of x (B, C, S, S), in nats (B,).

    The encoder's mean and log variance are improved by `steps` steps of Adam, for all images together; the gain is that
    of the importance-weighted bound with the draws `noise` (Likelihood Regret, Eq. 6).
    """
    with torch.no_grad():
        q = model.posterior(x)
        before = model.importance_bound(x, q, noise)
    numbers = [q.mean.clone().requires_grad_(), (2 * q.stddev.log()).requires_grad_()]
    optimizer = torch.optim.Adam(numbers, lr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        q = Normal(numbers[0], (numbers[1] / 2).exp(), validate_args=False)
        z = q.mean + q.stddev * torch.randn(1, model.latent, generator=generator).to(x.device)
        bound = model.likelihood(x, z) - kl_divergence(q, prior(q)).sum(1)
        for number, gradient in zip(numbers, torch.autograd.grad(-bound.sum(), numbers)):
            number.grad = gradient
        optimizer.step()
    with torch.no_grad():
        q = Normal(numbers[0], (numbers[1] / 2).exp(), validate_args=False)
        return model.importance_bound(x, q, noise) - before


# -------------------------------------------------------------------------------------------------------- detectors


class LikelihoodScore(Postprocessor):
    """What the detectors of generative networks share: they see images, and predict no class.

    What takes long, likelihoods, regrets and code lengths, is kept in `cache_dir` for the same images and weights.
    """

    class Arguments(Section):
        cache_dir: str

    runs_network = True
    generative = True

    def confidence(self, images: Images) -> torch.Tensor:
        pixels, _ = read(images.net, images.loader, images.device)
        return self.score(images.net, pixels, images.device)

    def prediction(self, images: Images) -> torch.Tensor:
        return torch.full((len(images.labels),), -1)

    def score(self, net: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """One number for each of the uint8 images (N, C, S, S)."""
        raise NotImplementedError

    def log_likelihood(self, net: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        inputs = {"weights": digest(net.state_dict().values()), "model": type(net.model).__name__}
        make = functools.partial(log_likelihood, net, images, device)
        return cached(self.args.cache_dir, "log-likelihood", images, inputs, make)

    def code_lengths(self, images: torch.Tensor) -> torch.Tensor:
        inputs = {"code": f"png {COMPRESSION}"}
        return cached(self.args.cache_dir, "code-length", images, inputs, lambda: code_lengths(images))


@postprocessor("likelihood")
class Likelihood(LikelihoodScore):
    """log2 p(x)."""

    def score(self, net: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self.log_likelihood(net, images, device)


@postprocessor("input_complexity")
class InputComplexity(LikelihoodScore):
    """log2 p(x) + L(x) (Serra et al., ICLR 2020)."""

    def score(self, net: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        return self.log_likelihood(net, images, device) + self.code_lengths(images)


@postprocessor("frl")
class FRL(InputComplexity):
    """log2 p(x, x_H) + L(x) (Cai & Li, Sec. 3.3)."""

    def score(self, net: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        if not net.frequency:
            raise InputError(
                "postprocessor.name: frl needs a network trained with trainer.frequency true; "
                "this one was trained without the high-frequency channel, use input_complexity"
            )
        return super().score(net, images, device)


@postprocessor("likelihood_regret")
class LikelihoodRegret(LikelihoodScore):
    """Minus the regret, with `steps` of Adam at rate `lr` (Xiao et al., NeurIPS 2020)."""

    class Arguments(LikelihoodScore.Arguments):
        steps: int = Field(100, ge=1)
        lr: float = Field(0.05, gt=0)

    def score(self, net: nn.Module, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        model = net.to(device).eval().model
        if not isinstance(model, VAE):
            raise InputError("postprocessor.name: likelihood_regret needs network.name vae, which has a posterior")
        noise, steps, lr = draws(model, device), self.args.steps, self.args.lr

        def minus_regret(x: torch.Tensor) -> torch.Tensor:
            return -regret(model, with_high_frequency(x) if net.frequency else x, noise, steps, lr)

        inputs = {"weights": digest(net.state_dict().values()), "steps": steps, "lr": lr}
        make = functools.partial(batched, minus_regret, images, device)
        return cached(self.args.cache_dir, "likelihood-regret", images, inputs, make)


def read(net: nn.Module, loader: Iterable[dict[str, Any]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a loader as the uint8 images (N, C, S, S) that `net` takes, and their labels (N,), on the CPU."""
    net.to(device)
    pairs = [(net.image(batch["data"].to(device)).cpu(), batch["label"]) for batch in loader]
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])
