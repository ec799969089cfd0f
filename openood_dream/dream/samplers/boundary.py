"""Outliers just beyond the boundary of a class (BOOD, Liao et al., ICML 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from openood_dream.dream.samplers.base import OutlierSettings, Sampler, sampler
from openood_dream.sampling.boundary import cross_boundary, soonest
from openood_dream.sampling.knn import Index, knn_distance


class BoundarySettings(OutlierSettings):
    """`dream.outliers` with method boundary."""

    method: Literal["boundary"] = Field("boundary", description="the sampler")
    step_size: float = Field(0.03, gt=0, description="boundary: length of a step along the sign of the gradient")
    extra_steps: int = Field(2, ge=0, description="boundary: steps c beyond the crossing")
    max_steps: int = Field(100, ge=1, description="boundary: steps after which an embedding is given up")
    fraction: float = Field(
        0.05, gt=0, le=1, description="boundary: share of each class that is used, the one that crosses soonest"
    )


@sampler("boundary", BoundarySettings)
class Boundary(Sampler[BoundarySettings]):
    """Outliers: the embeddings that cross the boundary of their class soonest, some steps beyond it."""

    draws = False

    def sample(
        self, z: Tensor, label: int, anchors: Tensor, temperature: float, index: Index | None = None
    ) -> dict[str, Tensor]:
        s, labels = self.settings, torch.full((len(z),), label, device=z.device)
        walked = cross_boundary(z, labels, anchors, temperature, s.step_size, s.extra_steps, s.max_steps)
        vectors, steps, target, margin = walked
        if not steps.any():
            raise ValueError(
                f"none of {len(z)} embeddings is nearest to its own class, so that none can leave it; train the space for "
                "longer (dream.space.epochs)"
            )
        source = soonest(steps, margin, s.fraction)
        if not len(source):
            raise ValueError(
                f"none of {len(z)} embeddings crosses the boundary within {s.max_steps} steps of {s.step_size:g}; "
                "raise max_steps or step_size"
            )
        return {
            "embeddings": vectors[source],
            "boundary": source,
            "distance": knn_distance(vectors[source], z if index is None else index, s.k),
            "steps": steps[source],
            "target": target[source],
            "all_steps": steps,
            "all_target": target,
        }
