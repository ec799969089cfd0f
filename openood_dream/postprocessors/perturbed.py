"""Detectors that run the network again on images changed along its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from openood_dream.datasets.settings import NORMALIZATION
from openood_dream.postprocessors.base import Images, Postprocessor, postprocessor
from openood_dream.postprocessors.settings import ODINArguments


class OnNetwork(Postprocessor):
    """Runs the network batch by batch, once for confidence and prediction of the same images."""

    runs_network = True
    _scored: tuple[Images, torch.Tensor, torch.Tensor] | None = None

    def batch(self, images: Images, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores a batch.

        Args:
            images: what the batch is of.
            x: normalised images (B, C, S, S) on the device.

        Returns:
            Confidence (B,) and prediction (B,).
        """
        raise NotImplementedError

    def confidence(self, images: Images) -> torch.Tensor:
        """The score of each image, (N,)."""
        return self._score(images)[0]

    def prediction(self, images: Images) -> torch.Tensor:
        """The class of each image, (N,)."""
        return self._score(images)[1]

    def _score(self, images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        if self._scored is None or self._scored[0] is not images:
            images.net.to(images.device).eval()
            conf, predicted = zip(*(self.batch(images, x) for x in batches(images)))
            self._scored = images, torch.cat(conf).cpu(), torch.cat(predicted).cpu()
        return self._scored[1:]


def batches(images: Images) -> Iterator[torch.Tensor]:
    """Normalised images (B, C, S, S) on the device, in the order of the list."""
    for batch in tqdm(images.loader, desc="score", unit="batch", leave=False, delay=2):
        yield batch["data"].to(images.device)


@postprocessor("odin", ODINArguments)
class ODIN(OnNetwork):
    """Maximum softmax probability at a temperature, of images moved a step towards their predicted class.

    The step is in units of the deviations that OpenOOD knows `dataset.name` by, 0.5 for any other data set.

    Source: Liang, Li & Srikant, Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks,
    ICLR 2018.
    """

    sweep = ("temperature", "noise")

    def batch(self, images: Images, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        net: Any = images.net
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = net(x)
            loss = F.cross_entropy(logits / self.args.temperature, logits.detach().argmax(1))
            (gradient,) = torch.autograd.grad(loss, x)
        step = torch.where(gradient >= 0, 1.0, -1.0) / deviations(images.dataset, x)
        with torch.no_grad():
            logits = net(x.detach() - self.args.noise * step) / self.args.temperature
        e = (logits - logits.amax(1, keepdim=True)).exp()
        conf, predicted = (e / e.sum(1, keepdim=True)).max(1)
        return conf, predicted


def deviations(dataset: str, x: torch.Tensor) -> torch.Tensor:
    """The deviations of the channels of images `x` by the name of the ID data, `dataset`, (1, C, 1, 1)."""
    _, std = NORMALIZATION.get(dataset, (None, (0.5,) * 3))
    return torch.tensor(std[: x.shape[1]]).view(1, -1, 1, 1).to(x)
