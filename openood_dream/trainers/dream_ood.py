"""DREAM-OOD (Du et al., NeurIPS 2023), phase 3: training with imagined outliers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.losses import energy_regularisation, outlier_exposure, with_extra_class
from openood_dream.trainers.base import Logistic, OutlierTrainer, trainer


@trainer("dream_ood")
class DreamOODTrainer(OutlierTrainer):
    """CE + beta * energy_regularisation; phi, a Linear(1, 2) that rises with the energy, is trained by the same optimiser.

    Or, by `loss`, CE + beta * outlier_exposure, or cross-entropy with outliers, weighted by beta, as one more class.
    """

    title = "DREAM-OOD"

    def additions(self) -> nn.ModuleDict:
        return nn.ModuleDict({"phi": Logistic()} if self.settings.loss == "energy" else {})

    def step(self, *batches: dict[str, Any]) -> dict[str, torch.Tensor]:
        terms = super().step(*batches)
        if "phi" in self.extra:
            self.extra["phi"].hold()
        return terms

    def terms(self, batch: dict[str, Any], outliers: dict[str, Any]) -> dict[str, torch.Tensor]:
        y = self.labels(batch)
        inside, outside = self.logits(batch, outliers).tensor_split([len(y)])
        if self.settings.loss == "energy":
            regularisation = energy_regularisation(inside, outside, self.extra["phi"])
        elif self.settings.loss == "oe":
            regularisation = outlier_exposure(outside)
        else:
            extra = torch.full((len(outside),), inside.shape[1], device=outside.device)
            inside, regularisation = with_extra_class(inside), F.cross_entropy(with_extra_class(outside), extra)
        return {"cross-entropy": F.cross_entropy(inside, y), "outliers": self.settings.beta * regularisation}
