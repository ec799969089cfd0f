"""A simulated device: tensors without data on torch's `meta` device, which like a GPU shares no memory with the CPU.

What reads a value from it fails, as nothing is there to be read; what mixes it with the CPU's tensors fails too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
aten: Any = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}  # from one device to another
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}  # as on a GPU, by indices of the CPU too
READS = {  # of the values of a tensor, for which a GPU must be waited for
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
}


class OneDevice(TorchDispatchMode):
    """Fails where an operation mixes devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # a number of no dimension may come from the CPU, as on a GPU
        devices = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}
        assert func in COPIES | INDEXED or len(devices) < 2, f"{func} mixes {' and '.join(sorted(devices))}"
        return func(*args, **kwargs)


class Reads(TorchDispatchMode):
    """Counts how often the values of tensors are read, for which a GPU would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READS
        return func(*args, **(kwargs or {}))


@contextmanager
def simulated() -> Iterator[torch.device]:
    """Within the block nothing may mix the simulated device, which it yields, with the CPU, or read from it."""
    with OneDevice():
        yield DEVICE
