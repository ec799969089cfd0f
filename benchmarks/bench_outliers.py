"""How fast outliers are sampled: `make bench`, or `pytest benchmarks/bench_outliers.py`.

The reference forms every candidate and searches each with faiss, as the public code does. Both get the same draws and
must keep the same candidates.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openood_dream.dream.samplers.boundary import Boundary, BoundarySettings
from openood_dream.sampling.knn import boundary_points, sample_outliers, sample_round


class Setting(NamedTuple):
    """A row of DREAM-OOD's settings, with the number of embeddings that a class has there."""

    embeddings: int
    k: int
    sigma: float
    select: int
    keep: int = 2
    n_boundary: int = 50
    n_draws: int = 1500


SETTINGS = {
    "cifar100": Setting(500, 300, 0.07, 50),
    "imagenet": Setting(1300, 300, 0.03, 200),
}
WIDTH = 768
SPREADS = [0.5, 1.0, 2.0]  # length of the noise around a class's direction: cosines within it of 0.8, 0.5 and 0.2


def embeddings(count: int, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Unit embeddings (count, WIDTH) around a random direction."""
    generator = torch.Generator().manual_seed(seed)
    centre = F.normalize(torch.randn(WIDTH, generator=generator), dim=0)
    return F.normalize(centre + spread * torch.randn(count, WIDTH, generator=generator) / WIDTH**0.5, dim=1)


def a_round(setting: Setting, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, boundary points and draws of one round."""
    z = embeddings(setting.embeddings, spread)
    boundary, _ = boundary_points(z, setting.k, setting.select)
    draws = torch.randn(setting.n_draws, WIDTH, generator=torch.Generator().manual_seed(1))
    return z, boundary[: setting.n_boundary], draws


def search_all(z, boundary, k, sigma, draws, keep) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and d_k (B, keep) of the farthest candidates, by an exact search for the neighbours of each of them."""
    candidates = F.normalize(z[boundary][:, None] + sigma * draws, dim=2)
    index = faiss.IndexFlatL2(WIDTH)
    index.add(z.numpy())
    squares, _ = index.search(candidates.flatten(0, 1).numpy(), k)
    distance = torch.from_numpy(np.sqrt(squares[:, -1])).view(len(boundary), len(draws))
    best = distance.topk(keep, dim=1)
    return best.indices, best.values


WANTED = {"cifar100": 40, "imagenet": None}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_round(against, name, spread):
    setting = SETTINGS[name]
    z, boundary, draws = a_round(setting, spread)
    args = (z, boundary, setting.k, setting.sigma, draws, setting.keep)
    (rows, _, distance), (expected_rows, expected_distance) = against(
        lambda: sample_round(*args),
        lambda: search_all(*args),
        "faiss searches every candidate",
        wanted=WANTED[name],
        rounds=20,
    )
    assert torch.equal(rows, expected_rows)
    assert torch.allclose(distance, expected_distance, rtol=0, atol=1e-5)


def test_a_class_and_with_it_a_million_embeddings(benchmark):
    """A tenth of the rounds of a class at the CIFAR-100 setting; the whole job is 100 classes of 100 rounds."""
    setting = SETTINGS["cifar100"]
    s = {"k": setting.k, "sigma": setting.sigma, "select": setting.select, "keep": setting.keep, "rounds": 10}
    z = embeddings(setting.embeddings)
    found = benchmark.pedantic(sample_outliers, (z,), s, rounds=5, warmup_rounds=1)
    assert len(found["embeddings"]) == 10 * setting.n_boundary * setting.keep
    if benchmark.stats is not None:  # with --benchmark-disable nothing is timed
        benchmark.extra_info["minutes_for_a_million"] = benchmark.stats.stats.min * 10 * 100 / 60


def test_boundary_crossing_of_a_class(benchmark):
    """500 embeddings walk to the boundaries of 100 classes."""
    anchors = F.normalize(torch.randn(100, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)
    z = F.normalize(anchors[0] + embeddings(500, 1.0, seed=3), dim=1)
    sampler = Boundary(BoundarySettings(method="boundary", step_size=0.03))
    found = benchmark.pedantic(sampler.sample, (z, 0, anchors, 0.1), rounds=5, warmup_rounds=1)
    benchmark.extra_info["kept"] = len(found["steps"])


PEAK = """
import sys
import torch
sys.path.insert(0, {folder!r})
from bench_outliers import SETTINGS, a_round, sample_round

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))

with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # the peak from here on
before = memory("VmRSS:")
setting = SETTINGS[{name!r}]
z, boundary, draws = a_round(setting)
sample_round(z, boundary, setting.k, setting.sigma, draws, setting.keep)
print(memory("VmHWM:") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can only be set back on Linux")
@pytest.mark.parametrize("name", SETTINGS)
def test_peak_memory_of_a_round(capsys, name):
    code = PEAK.format(folder=os.path.dirname(os.path.abspath(__file__)), name=name)
    megabytes = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    with capsys.disabled():
        print(f"\n{name}: {megabytes:.0f} MB at most, embeddings, draws and libraries' first use included")
    assert megabytes < 500
