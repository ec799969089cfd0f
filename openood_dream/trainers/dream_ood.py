"""DREAM-OOD (Du et al., NeurIPS 2023), phase 3: energy regularisation with imagined outliers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.losses import energy_regularisation
from openood_dream.trainers.base import OutlierTrainer, trainer


@trainer("dream_ood")
class DreamOODTrainer(OutlierTrainer):
    """CE + beta * energy_regularisation; phi, a Linear(1, 2), is trained by the same optimiser."""

    title = "DREAM-OOD"

    def __init__(
        self, net: nn.Module, train_loader: DataLoader, train_unlabeled_loader: DataLoader, config: dict
    ) -> None:
        self.phi = nn.Linear(1, 2).to(next(net.parameters()).device)
        with torch.no_grad():
            # From a random start phi may learn that outliers have the higher energy, and turn the test score round.
            self.phi.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.phi.bias.zero_()
        super().__init__(net, train_loader, train_unlabeled_loader, config)

    def parameters(self) -> Iterable[nn.Parameter]:
        return [*self.net.parameters(), *self.phi.parameters()]

    def loss(self, batch: dict[str, Any], outliers: dict[str, Any]) -> torch.Tensor:
        logits, y = self.logits(batch, outliers), self.labels(batch)
        regularisation = energy_regularisation(logits[: len(y)], logits[len(y) :], self.phi)
        return F.cross_entropy(logits[: len(y)], y) + self.settings.beta * regularisation
