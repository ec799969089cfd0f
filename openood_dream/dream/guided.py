"""Guidance of a pipeline's own call: its scheduler's steps are looked at, and its latents moved between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openood_dream.datasets.images import ImageList, Transform
from openood_dream.dream.guide import clean, gradient_of, kth_distance, push
from openood_dream.dream.guide_settings import GuideSettings
from openood_dream.dream.quality import Judge
from openood_dream.dream.steps import watched
from openood_dream.losses import energy

BATCH = 256  # ID images that are embedded at once


@dataclass(frozen=True)
class Guidance:
    """What guides the drawing, to be loaded where images are drawn.

    Args:
        settings: `dream.synthesis.guide`.
        judge: the ID classifier.
        images: the ID training images as it sees them, without augmentation.
        rows: which of them are the ID features that distances are measured to, numbers in the list (N,).

    Raises:
        InputError: k is more than there are such features.
    """

    settings: GuideSettings
    judge: Judge
    images: ImageList
    rows: Tensor

    def __post_init__(self) -> None:
        if self.settings.feature and self.settings.k > len(self.rows):
            raise self.settings.error("k", f"expected at most {len(self.rows)} (ID features), got {self.settings.k}")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides about it, besides the space that the outliers are of."""
        about = {"train": self.images.identity} if self.settings.feature else {}
        return about | {
            "settings": self.settings.model_dump(),
            "judge": self.judge.identity,
            "transform": self.images.transform.test_identity,
        }

    def load(self, device: torch.device) -> Guide:
        """The guide, on the device where images are drawn.

        Args:
            device: the device.
        """
        net = self.judge.load().to(device).eval().requires_grad_(False)
        bank = torch.zeros(0, 0)
        if self.settings.feature:
            batches = [self.images.__getitems__(rows.tolist())["data"] for rows in self.rows.split(BATCH)]
            with torch.no_grad():
                bank = torch.cat([net(batch.to(device))[1] for batch in batches])
        return Guide(self.settings, net, bank, self.images.transform)


class Guide:
    """Moves latents between the steps of a pipeline.

    Args:
        settings: weights, and the part of the steps.
        net: from normalised images (B, 3, S, S) to logits (B, C) and unit features (B, D).
        bank: unit features of ID images (N, D); not needed without the weight `feature`.
        transform: size and normalisation of the images that the net takes.
    """

    def __init__(self, settings: GuideSettings, net: nn.Module, bank: Tensor, transform: Transform) -> None:
        self.settings, self.net, self.bank, self.transform = settings, net, bank, transform

    def scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is to rise of images (B, 3, H, W) in [-1, 1]: minus the log partition function, and the distance, (B,) each."""
        size = self.transform.image_size
        x = (images.float().clamp(-1, 1) + 1) / 2
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=x.shape[-1] > size, align_corners=False)
        logits, features = self.net(self.transform.normalize(255 * x))
        far = kth_distance(features, self.bank, self.settings.k) if self.settings.feature else 0 * features[:, 0]
        return -energy(logits), far

    @contextmanager
    def steering(self, pipeline: Any) -> Iterator[dict[str, Any]]:
        """Within the block, arguments of the pipeline's call that have it guided.

        Args:
            pipeline: what draws.
        """
        seen: dict[str, Tensor] = {}

        def look(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> None:
            seen["clean"] = clean(pipeline.scheduler, model_output, timestep, sample)

        with watched(pipeline.scheduler, look):

            def after(pipe: Any, number: int, step: Any, given: dict[str, Any]) -> dict[str, Any]:
                total = getattr(pipe, "num_timesteps", None) or len(pipe.scheduler.timesteps)
                first, last = (round(share * total) for share in (self.settings.begin, self.settings.end))
                if first <= number < last:
                    given["latents"] = self._moved(pipe.vae, given["latents"], seen["clean"], last - first)
                return given

            yield {"callback_on_step_end": after, "callback_on_step_end_tensor_inputs": ["latents"]}

    def _moved(self, vae: Any, latents: Tensor, predicted: Tensor, steps: int) -> Tensor:
        """The latents, moved by one of so many steps' share of the weights."""

        def decoded(z: Tensor) -> Tensor:
            config = vae.config
            z = z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
            return vae.decode(z.to(vae.dtype), return_dict=False)[0]

        moved = latents
        for which, weight in enumerate((self.settings.image, self.settings.feature)):
            if weight:
                gradient = gradient_of(lambda z, which=which: self.scores(decoded(z))[which], predicted)  # type: ignore[misc]
                moved = push(moved, gradient, weight / steps)
        return moved
