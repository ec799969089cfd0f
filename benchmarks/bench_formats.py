"""Both number formats of a training step on a CPU: `make bench`, or `pytest benchmarks/bench_formats.py`.

The step is the one that `precision: auto` times of the network that is to be trained (openood_dream/networks/precision.py);
`auto` takes the format that is the faster here.
"""

from __future__ import annotations

import copy

import pytest
import torch

from openood_dream.networks.precision import PIXELS, seconds
from openood_dream.networks.timm_network import TimmNetwork


@pytest.mark.parametrize("name", ["fast_vgg", "resnet18"])
def test_bfloat16(against, name):
    """A step in bfloat16, against one in float32."""
    net, images = TimmNetwork(name, 10, small=True), torch.randn(PIXELS // 32**2 // 8, 3, 32, 32)
    nets = {dtype: copy.deepcopy(net) for dtype in (torch.bfloat16, torch.float32)}
    step = {dtype: lambda dtype=dtype: seconds(nets[dtype], images, dtype) for dtype in nets}
    found = against(step[torch.bfloat16], step[torch.float32], "float32", rounds=1, reference_rounds=1, warmup=False)
    assert min(found) > 0
