"""OAL (Gao and Li, "Enhancing OOD Detection Using Latent Diffusion"): outlier-aware learning with a teacher."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.device import autocast, copied, room
from openood_dream.losses import club, distillation, gaussian_fit
from openood_dream.networks.trial import check_backbone
from openood_dream.parallel.processes import unwrap_model
from openood_dream.trainers.base import BaseTrainer, Batch, Plan, Terms, fc_layer, trainer
from openood_dream.trainers.optimizers import groups
from openood_dream.trainers.settings import OAL

HIDDEN = 256  # width of CLUB's networks
GRID = 4  # latents are averaged over a grid of so many cells a side: 64 numbers for four channels
REACH = 6.0  # q's log-variances stay within this, so that one odd feature cannot make its likelihood explode


class Conditional(nn.Module):
    """q(feature | outlier) of CLUB: Gaussians with mean and log-variance (B, D) from outliers (B, m), by two networks.

    Args:
        outlier_width: numbers in an outlier, m.
        feature_width: numbers in a feature, D.
    """

    def __init__(self, outlier_width: int, feature_width: int) -> None:
        super().__init__()

        def network() -> nn.Sequential:
            return nn.Sequential(nn.Linear(outlier_width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, feature_width))

        self.mean, self.log_variance = network(), network()

    def forward(self, outliers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean(outliers), REACH * torch.tanh(self.log_variance(outliers) / REACH)


class FitLoss(nn.Module):
    """The negative log-likelihood of features under the q of each kind of outliers, summed over the kinds.

    Args:
        conditionals: q of each kind.
    """

    def __init__(self, conditionals: dict[str, Conditional]) -> None:
        super().__init__()
        self.conditionals = nn.ModuleDict(conditionals)

    def forward(self, outliers: dict[str, torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        gaussians = [self.conditionals[name](rows) for name, rows in outliers.items()]
        return reduce(torch.add, [gaussian_fit(mean, log_variance, features) for mean, log_variance in gaussians])


def outlier_label(pairing: str) -> str:
    """What tables say that a network learned from, by `trainer.pairing`."""
    return "teacher, latents by class" if pairing == "class" else "teacher, latents at random"


class Draws:
    """Draws an outlier for each image: of all, or of those of its class.

    Args:
        labels: the class of each outlier (M,).
        pairing: random, or class.

    Raises:
        ValueError: pairing by class, and a class below the largest has no outlier.
    """

    def __init__(self, labels: torch.Tensor, pairing: str) -> None:
        self.total, self.by_class = len(labels), pairing == "class"
        self.order, self.counts = labels.argsort(stable=True), labels.bincount()
        self.starts = self.counts.cumsum(0) - self.counts
        if self.by_class and not self.counts.all():
            raise ValueError(f"class {int((self.counts == 0).nonzero()[0])} has no outlier to go with its images")

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Rows of outliers (B,) for images of classes `labels` (B,); by class on the device of the labels."""
        if not self.by_class:
            return torch.randint(self.total, (len(labels),))
        if self.order.device != labels.device:  # once
            self.order, self.counts, self.starts = (
                one.to(labels.device) for one in (self.order, self.counts, self.starts)
            )
        shares = copied(torch.rand(len(labels), dtype=torch.float64), labels.device)
        return self.order[self.starts[labels] + (shares * self.counts[labels]).long()]


@trainer("oal", OAL)
class OALTrainer(BaseTrainer):
    """CE + logits * KL(teacher || student) of logits + features * the same of features + knn * CLUB(k-NN outliers;
    features) + latents * CLUB(latents of outliers; features), each weight a setting.

    The teacher's features pass a small network, trained along, into the student's space. CLUB's q is fitted by a step of
    maximum likelihood, with an optimiser of its own, before each bound is taken; without that it bounds nothing.

    Which outliers go with an image is `pairing`. As published they are drawn at random: they are independent of the
    image, so there is no information to bound, the two terms are noise of mean 0, and what is learned is learned from
    the teacher. With `class` they are of the image's class.

    Args:
        net: see BaseTrainer.
        train_loader: see BaseTrainer.
        teacher: a network in OpenOOD's protocol for the same images and classes.
        embeddings: of k-NN outliers (M, m).
        latents: of images of outlier prompts (L, c, h, w).
        embedding_labels: classes of the embeddings (M,), one of each class at least; only `pairing: class` reads them.
        latent_labels: the same of the latents (L,).
        options: the other keyword arguments of BaseTrainer.
    """

    needs_teacher = True
    settings: OAL

    @classmethod
    def check_plan(cls, settings: OAL, plan: Plan) -> None:
        super().check_plan(settings, plan)
        check_backbone(settings.teacher, "network", "args", **plan.shape)

    def __init__(
        self,
        net: nn.Module,
        train_loader: DataLoader,
        *,
        teacher: nn.Module,
        embeddings: torch.Tensor,
        latents: torch.Tensor,
        embedding_labels: torch.Tensor,
        latent_labels: torch.Tensor,
        **options: Any,
    ) -> None:
        self.teacher = teacher.to(next(net.parameters()).device).eval().requires_grad_(False)
        pooled = F.adaptive_avg_pool2d(latents.float(), GRID).flatten(1)
        self.outliers = {"knn": embeddings.float(), "latents": pooled}
        super().__init__(net, train_loader, **options)
        labels = {"knn": embedding_labels, "latents": latent_labels}
        self.draws = {name: Draws(rows, self.settings.pairing) for name, rows in labels.items()}
        if 4 * sum(rows.nbytes for rows in self.outliers.values()) < room(self.device):
            self.outliers = {name: rows.to(self.device) for name, rows in self.outliers.items()}
        width = fc_layer(self.net).in_features
        self.q = {name: Conditional(rows.shape[1], width) for name, rows in self.outliers.items()}
        self.fit_loss = FitLoss(self.q).to(self.device)
        self.shared_fit_loss = self.processes.prepare(self.fit_loss)
        self.fitting = torch.optim.Adam(self.fit_loss.parameters(), self.settings.club_lr)

    def additions(self) -> dict[str, nn.Module]:
        width, wide = (fc_layer(net).in_features for net in (self.net, unwrap_model(self.teacher)))
        self.translator = nn.Sequential(nn.BatchNorm1d(wide), nn.Linear(wide, width), nn.ReLU(), nn.BatchNorm1d(width))
        return {"translator": self.translator}

    def parameters(self) -> list[Any]:
        translator = {"params": [*self.translator.parameters()], "lr": self.settings.translator_lr}
        return [*groups(self.net, self.options), translator]

    def terms(self, *batches: Batch) -> Terms:
        (batch,) = batches
        s, y, x = self.settings, self.labels(batch), self.images(batch)
        logits, features = self.logits_and_features(x)
        with torch.no_grad(), autocast(self.device, self.dtype):
            teacher_logits, teacher_features = self.teacher(x, return_feature=True)
        translated = self.translator(teacher_features.float())
        outliers = {
            name: rows[copied(self.draws[name](y), rows.device)].to(self.device) for name, rows in self.outliers.items()
        }
        self.fit(outliers, features.detach())
        return {
            "cross-entropy": self.cross_entropy(logits, y),
            "logits": s.logits * distillation(logits, teacher_logits.float()),
            "features": s.features * distillation(features, translated),
            "knn": s.knn * self.bound("knn", outliers["knn"], features),
            "latents": s.latents * self.bound("latents", outliers["latents"], features),
        }

    def fit(self, outliers: dict[str, torch.Tensor], features: torch.Tensor) -> None:
        """One step of maximum likelihood of each q.

        Args:
            outliers: (B, m) of each kind.
            features: (B, D), those that go with them.
        """
        loss = self.shared_fit_loss(outliers, features)
        self.fitting.zero_grad()
        loss.backward()
        self.fitting.step()

    def bound(self, name: str, outliers: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """CLUB's bound with q as it stands; its gradient reaches the features alone.

        Args:
            name: the kind of outliers.
            outliers: (B, m).
            features: (B, D), those that go with them.
        """
        with torch.no_grad():
            mean, log_variance = self.q[name](outliers)
        return club(mean, log_variance, features)

    def parts(self) -> dict[str, Any]:
        return super().parts() | {"q": self.fit_loss, "fitting": self.fitting}
