"""Outliers just beyond the boundary of a class (BOOD, Liao et al., ICML 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from openood_dream.dream.samplers.base import Sampler, sampler
from openood_dream.dream.settings import BoundarySettings
from openood_dream.sampling.boundary import cross_boundary, soonest
from openood_dream.sampling.knn import Index, knn_distance


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
