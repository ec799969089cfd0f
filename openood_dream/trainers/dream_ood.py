"""DREAM-OOD (Du et al., NeurIPS 2023), phase 3: training with imagined outliers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.device import copied
from openood_dream.losses import energy_margins, energy_regularisation, outlier_exposure, with_extra_class
from openood_dream.trainers.base import Batch, Logistic, OutlierTrainer, Terms, trainer
from openood_dream.trainers.settings import DreamOOD


@trainer("dream_ood", DreamOOD)
class DreamOODTrainer(OutlierTrainer):
    """CE + beta * energy_regularisation; phi, a Linear(1, 2) that rises with the energy, is trained along (Eq. 5 and 6).

    Or, by `loss`, CE + beta * energy_margins, which need no phi, or outlier_exposure, or cross-entropy with outliers,
    weighted by beta, as one more class.

    With `pairs` the auxiliary images that are labelled with a class are ID images in all terms: the inliers of pairs of
    imagined images that differ by their meaning alone.
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
        batch, auxiliary = batches
        y, s = self.labels(batch), self.settings
        id_logits, outlier_logits = self.logits(batch, auxiliary).tensor_split([len(y)])
        if s.pairs:
            inliers = copied(auxiliary["label"] >= 0, self.device)
            id_logits = torch.cat([id_logits, outlier_logits[inliers]])
            y = torch.cat([y, self.labels(auxiliary)[inliers]])
            outlier_logits = outlier_logits[~inliers]
        regularisation = s.beta * self.regularisation(id_logits, outlier_logits)
        if s.loss == "extra_class":
            id_logits = with_extra_class(id_logits)
        return {"cross-entropy": self.cross_entropy(id_logits, y), "outliers": regularisation}

    def regularisation(self, id_logits: torch.Tensor, outlier_logits: torch.Tensor) -> torch.Tensor:
        """What is learned from outliers, before its weight.

        Args:
            id_logits: (B, C).
            outlier_logits: (O, C); of a small batch of pairs all may be ID, and then nothing is learned.
        """
        s = self.settings
        if not len(outlier_logits):
            return id_logits.sum() * 0
        if self.phi is not None:
            return energy_regularisation(id_logits, outlier_logits, self.phi)
        if s.loss == "margin":
            return energy_margins(id_logits, outlier_logits, s.m_in, s.m_out)
        if s.loss == "oe":
            return outlier_exposure(outlier_logits)
        extra = torch.full((len(outlier_logits),), id_logits.shape[1], device=self.device)
        return F.cross_entropy(with_extra_class(outlier_logits), extra)
