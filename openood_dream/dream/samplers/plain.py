"""No outliers: the class's own anchor, for images of the plain class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openood_dream.dream.samplers.base import Sampler, sampler
from openood_dream.dream.settings import PlainSettings
from openood_dream.sampling.knn import Index, knn_distance


@sampler("plain", PlainSettings)
class Plain(Sampler[PlainSettings]):
    """The anchor of a class in the place of outliers: what images are without outlier embeddings.

    Its `boundary` is the embedding that is nearest to it.
    """

    draws = False

    def sample(
        self, z: Tensor, label: int, anchors: Tensor, temperature: float, index: Index | None = None
    ) -> dict[str, Tensor]:
        direction = F.normalize(anchors[label : label + 1], dim=1)
        return {
            "embeddings": direction.clone(),
            "boundary": (z @ direction[0]).argmax()[None],
            "distance": knn_distance(direction, z if index is None else index, self.settings.k),
            "sigma": torch.tensor(0.0, dtype=torch.float64),
        }
