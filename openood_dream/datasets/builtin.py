"""The benchmarks that are made here, by the name that `dataset.make` gives them."""

from __future__ import annotations

from pathlib import Path

from openood_dream.datasets.digits import make_digits
from openood_dream.datasets.likelihoods import make_frl_cifar10

BUILT_IN = {"digits": make_digits, "frl_cifar10": make_frl_cifar10}


def ensure(name: str | None, root: str | Path) -> None:
    """Writes a built-in benchmark, if it is not there yet.

    Args:
        name: a key of BUILT_IN, or None for none.
        root: the folder that it is written into.
    """
    if name is not None:
        BUILT_IN[name](root)
