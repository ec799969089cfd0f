"""Imagined out-of-distribution images for OpenOOD, and the proof of what they are worth.

What is exported here is the package's door; it is imported when it is first asked for, so that the package itself comes
in no time:

- `Dream`: the imagination of a config or of settings, stage by stage;
- `sample_outliers`, `cross_boundary`: outlier embeddings of a class, as functions of tensors;
- `Imaginer`: images of token embeddings, by a diffusion pipeline;
- `Detector`: a trained run that says of images which class they are of, and whether they are in-distribution;
- `load_config`: files and overrides as frozen, typed settings; `TRAINERS`: the training methods by name;
- `register`, `unregister`: OpenOOD knows what is ours, and no longer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from openood_dream import cores
from openood_dream._version import __version__

cores.settle()

if TYPE_CHECKING:
    from openood_dream.dream.imaginer import Imaginer
    from openood_dream.experiment import Dream, load_config
    from openood_dream.openood.registry import register, unregister
    from openood_dream.pipelines.detector import Detector
    from openood_dream.sampling.boundary import cross_boundary
    from openood_dream.sampling.knn import sample_outliers
    from openood_dream.trainers.known import TRAINERS

__all__ = [
    "TRAINERS",
    "Detector",
    "Dream",
    "Imaginer",
    "__version__",
    "cross_boundary",
    "load_config",
    "register",
    "sample_outliers",
    "unregister",
]

_HOMES = {
    "Detector": "pipelines.detector",
    "Dream": "experiment",
    "Imaginer": "dream.imaginer",
    "TRAINERS": "trainers.known",
    "cross_boundary": "sampling.boundary",
    "load_config": "experiment",
    "register": "openood.registry",
    "sample_outliers": "sampling.knn",
    "unregister": "openood.registry",
}


def __getattr__(name: str) -> Any:
    """Imports an exported name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """All names, those included that nobody has asked for yet."""
    return sorted({*globals(), *__all__})
