"""How auxiliary images are made to resemble ID images: by ways of resizing, and by the traces of JPEG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Way(NamedTuple):
    """What happens to an image before its crop.

    Attributes:
        interpolation: how it is resized, a name of torchvision's InterpolationMode.
        quality: of the JPEG that it goes through before, or None.
    """

    interpolation: str
    quality: int | None


@dataclass(frozen=True)
class Mixture:
    """Several ways of resizing, and several qualities of JPEG, of which each image has one (NCIS resizes outliers so).

    Args:
        interpolations: names of torchvision's InterpolationMode.
        jpeg: the lowest and the highest quality, or None.
    """

    interpolations: tuple[str, ...]
    jpeg: tuple[int, int] | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides how images look, by the keys of `dataset.oe`."""
        return {"interpolation": list(self.interpolations), "jpeg": self.jpeg and list(self.jpeg)}

    def way(self, index: int) -> Way:
        """The way of the image at `index` of its list: in every epoch and process the same, so that it is decoded once."""
        rng = np.random.default_rng(index)
        interpolation = self.interpolations[rng.integers(len(self.interpolations))]
        return Way(interpolation, None if self.jpeg is None else int(rng.integers(self.jpeg[0], self.jpeg[1] + 1)))
