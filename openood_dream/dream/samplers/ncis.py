"""Outliers that break the invariants of their class (NCIS, Doorenbos et al., arXiv 2411.13619)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from openood_dream.dream.samplers.base import Sampler, sampler
from openood_dream.dream.settings import NCISSettings
from openood_dream.sampling import ncis
from openood_dream.sampling.knn import Index, knn_distance
from openood_dream.store.tensors import load_into, write_tensors

NETWORK = "volume_preserving.safetensors"


@sampler("ncis", NCISSettings)
class NCIS(Sampler[NCISSettings]):
    """Outliers: unlikely draws in the space of a volume-preserving network that was trained on the embeddings.

    The network sees embeddings sqrt(m) times as long, so that their numbers are about 1 whatever the width m is.
    """

    net: ncis.VolumePreserving
    invariants: int

    def learn(self, z: Tensor, labels: Tensor, folder: Path) -> None:
        s, x = self.settings, math.sqrt(z.shape[1]) * z
        self.invariants = ncis.count_invariants(x, labels, s.invariant_share)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            self.net = ncis.VolumePreserving(z.shape[1], int(labels.max()) + 1, s.pairs)
        if (folder / NETWORK).exists():
            load_into(self.net, folder / NETWORK)
            self.net.to(z.device)
            return
        training = ncis.train(
            self.net.to(z.device),
            x,
            labels,
            self.invariants,
            epochs=s.epochs,
            batch_size=s.batch_size,
            lr=s.lr,
            seed=s.seed,
        )
        for _ in tqdm(training, total=s.epochs, desc="outliers: training the network", unit="epoch", delay=2):
            pass
        write_tensors(folder / NETWORK, **self.net.state_dict())

    def sample(
        self, z: Tensor, label: int, anchors: Tensor, temperature: float, index: Index | None = None
    ) -> dict[str, Tensor]:
        s, scale = self.settings, math.sqrt(z.shape[1])
        drawn = ncis.sample(
            self.net,
            scale * z,
            label,
            draws=s.gaussian_draws,
            keep=s.least_likely,
            rounds=s.repetitions,
            seed=s.seed,
        )
        found = F.normalize(drawn, dim=1)
        broken = {"id_violation": scale * z, "violation": scale * found}
        return {
            "embeddings": found,
            "boundary": (found @ z.T).argmax(1),
            "distance": knn_distance(found, z if index is None else index, s.k),
            "invariants": torch.tensor(self.invariants),
            **{name: torch.tensor(ncis.violation(self.net, x, label, self.invariants)) for name, x in broken.items()},
        }
