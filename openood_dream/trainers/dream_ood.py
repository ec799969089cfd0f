"""DREAM-OOD (Du et al., NeurIPS 2023), phase 3: training with imagined outliers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.losses import energy_regularisation, outlier_exposure, with_extra_class
from openood_dream.trainers.base import Batch, Logistic, OutlierTrainer, Terms, trainer
from openood_dream.trainers.settings import DreamOOD


@trainer("dream_ood", DreamOOD)
class DreamOODTrainer(OutlierTrainer):
    """CE + beta * energy_regularisation; phi, a Linear(1, 2) that rises with the energy, is trained along (Eq. 5 and 6).

    Or, by `loss`, CE + beta * outlier_exposure, or cross-entropy with outliers, weighted by beta, as one more class.
    """

    settings: DreamOOD
    phi: Logistic | None = None

    def additions(self) -> dict[str, nn.Module]:
        if self.settings.loss != "energy":
            return {}
        self.phi = Logistic()
        return {"phi": self.phi}

    def step(self, *batches: Batch) -> Terms:
        terms = super().step(*batches)
        if self.phi is not None:
            self.phi.hold()
        return terms

    def terms(self, *batches: Batch) -> Terms:
        batch, outliers = batches
        y, beta = self.labels(batch), self.settings.beta
        id_logits, outlier_logits = self.logits(batch, outliers).tensor_split([len(y)])
        if self.phi is not None:
            regularisation = energy_regularisation(id_logits, outlier_logits, self.phi)
        elif self.settings.loss == "oe":
            regularisation = outlier_exposure(outlier_logits)
        else:
            extra = torch.full((len(outlier_logits),), id_logits.shape[1], device=self.device)
            id_logits = with_extra_class(id_logits)
            regularisation = F.cross_entropy(with_extra_class(outlier_logits), extra)
        return {"cross-entropy": self.cross_entropy(id_logits, y), "outliers": beta * regularisation}
