"""VOS (Du et al., ICLR 2022): virtual outliers from the thin regions of class Gaussians of the features."""

from __future__ import annotations

import torch
from torch import nn

from openood_dream.losses import energy_regularisation, virtual_outliers
from openood_dream.trainers.base import BaseTrainer, Batch, Logistic, Plan, Terms, fc_layer, trainer
from openood_dream.trainers.queue import ClassQueue, Participation, check_queue, remember
from openood_dream.trainers.settings import VOS

RIDGE = 1e-4  # on the covariance's diagonal


class Gaussians(ClassQueue):
    """A queue with the means of its classes and their shared covariance, of sums that follow what comes and goes.

    Args:
        classes: number of classes C.
        size: features kept of each class.
        width: numbers in a feature, D.
        dtype: number format of the sums.
    """

    sums: torch.Tensor  # (C, D)
    products: torch.Tensor  # (D, D)

    def __init__(self, classes: int, size: int, width: int, dtype: torch.dtype) -> None:
        super().__init__(classes, size, width)
        self.register_buffer("sums", torch.zeros(classes, width, dtype=dtype))
        self.register_buffer("products", torch.zeros(width, width, dtype=dtype))

    @torch.no_grad()
    def push(self, features: torch.Tensor, labels: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        old = super().push(features, labels, known)
        new, gone = features.to(self.rows.dtype).to(self.sums.dtype), old.to(self.sums.dtype)
        self.sums.index_add_(0, labels, new - gone)
        self.products += new.T @ new - gone.T @ gone
        return old

    def means(self) -> torch.Tensor:
        """Class means (C, D) of a full queue."""
        return self.sums / self.rows.shape[1]

    def covariance(self) -> torch.Tensor:
        """The covariance (D, D) around the class means, with RIDGE on the diagonal, of a full queue."""
        means = self.means()
        spread = self.products / self.rows.shape[0] / self.rows.shape[1] - means.T @ means / len(means)
        return spread + RIDGE * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)


@trainer("vos", VOS)
class VOSTrainer(BaseTrainer):
    """CE + loss_weight * energy_regularisation with virtual outliers, from `start_epoch` on and once the queue is full.

    phi and the classes' weights in the energy are trained by the same optimiser (Eq. 3 to 6).
    """

    settings: VOS

    @classmethod
    def check_plan(cls, settings: VOS, plan: Plan) -> None:
        super().check_plan(settings, plan)
        check_queue(settings, "start_epoch", plan)

    def additions(self) -> dict[str, nn.Module]:
        self.weights = nn.Linear(fc_layer(self.net).out_features, 1, bias=False)
        nn.init.uniform_(self.weights.weight)
        self.phi = Logistic()
        return {"phi": self.phi, "weights": self.weights}

    def memories(self) -> dict[str, nn.Module]:
        fc = fc_layer(self.net)
        exact = torch.float32 if self.device.type == "mps" else torch.float64  # sums that never start afresh drift
        self.queue = Gaussians(fc.out_features, self.settings.sample_number, fc.in_features, exact)
        self.participation = Participation()
        return {"queue": self.queue, "participation": self.participation}

    def terms(self, *batches: Batch) -> Terms:
        (batch,) = batches
        s, y = self.settings, self.labels(batch)
        logits, features = self.logits_and_features(self.images(batch))
        terms = {"cross-entropy": self.cross_entropy(logits, y)}
        remember(self.queue, features.detach(), y, batch["label"], s)
        with_outliers = self.epoch >= s.start_epoch and self.queue.full()
        self.participation.count(with_outliers)
        if with_outliers:
            drawn = virtual_outliers(self.queue.means(), self.queue.covariance(), s.sample_from, s.select)
            outlier_logits = fc_layer(self.net)(drawn.to(features))
            regularisation = energy_regularisation(logits, outlier_logits, self.phi, self.weights.weight[0])
            terms["outliers"] = s.loss_weight * regularisation
        return terms

    def remarks(self) -> list[str]:
        return self.participation.remarks(self.queue, self.settings, "start_epoch", "cross-entropy")
