"""OAL (Gao and Li, "Enhancing OOD Detection Using Latent Diffusion"): outlier-aware learning with a teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.losses import club, distillation, gaussian_fit
from openood_dream.networks import autocast
from openood_dream.trainers import processes
from openood_dream.trainers.base import BaseTrainer, bare, trainer

HIDDEN = 256  # width of CLUB's networks
GRID = 4  # latents are averaged over a grid of so many cells a side: 64 numbers for four channels
REACH = 6.0  # q's log-variances stay within this, so that one odd feature cannot make its likelihood explode


class Conditional(nn.Module):
    """q(feature | outlier) of CLUB: Gaussians with mean and log-variance (B, D) from outliers (B, m), by two networks."""

    def __init__(self, outlier_width: int, feature_width: int) -> None:
        super().__init__()

        def network() -> nn.Sequential:
            return nn.Sequential(nn.Linear(outlier_width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, feature_width))

        self.mean, self.log_variance = network(), network()

    def forward(self, outliers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mean(outliers), REACH * torch.tanh(self.log_variance(outliers) / REACH)


@trainer("oal")
class OALTrainer(BaseTrainer):
    """CE + logits * KL(teacher || student) of logits + features * the same of features + knn * CLUB(k-NN outliers;
    features) + latents * CLUB(latents of outliers; features), each weight a setting.

    The teacher's features pass a small network, trained along, into the student's space. Outliers are drawn at random for each
    image. CLUB's q is fitted by a step of maximum likelihood, with an optimiser of its own, before each bound is
    taken; without that it bounds nothing.
    """

    title = "OAL"
    taught = True

    def __init__(
        self,
        net: nn.Module,
        train_loader: DataLoader,
        config: dict,
        *,
        teacher: nn.Module,
        embeddings: torch.Tensor,
        latents: torch.Tensor,
    ) -> None:
        """`teacher` is a network in OpenOOD's protocol for the same images and classes, `embeddings` (M, m) are those of
        k-NN outliers, and `latents` (L, c, h, w) are those of images of outlier prompts."""
        self.teacher = teacher.to(next(net.parameters()).device).eval().requires_grad_(False)
        pooled = F.adaptive_avg_pool2d(latents.float(), GRID).flatten(1)
        self.outliers = {"knn": embeddings.float(), "latents": pooled}
        super().__init__(net, train_loader, config)
        conditionals = [p for name in self.outliers for p in self.extra[name].parameters()]
        self.fitting = torch.optim.Adam(conditionals, self.settings.club_lr)

    def additions(self) -> nn.ModuleDict:
        width, taught = (bare(net).get_fc_layer().in_features for net in (self.net, self.teacher))
        translator = nn.Sequential(nn.BatchNorm1d(taught), nn.Linear(taught, width), nn.ReLU(), nn.BatchNorm1d(width))
        conditionals = {name: Conditional(rows.shape[1], width) for name, rows in self.outliers.items()}
        return nn.ModuleDict({"translator": translator, **conditionals})

    def parameters(self) -> list[Any]:
        translator = {"params": [*self.extra["translator"].parameters()], "lr": self.settings.translator_lr}
        return [{"params": [*self.net.parameters()]}, translator]

    def terms(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        s, y, x = self.settings, self.labels(batch), self.images(batch)
        logits, features = self.logits_and_features(x)
        with torch.no_grad(), autocast(self.device, self.dtype):
            taught_logits, taught_features = self.teacher(x, return_feature=True)
        translated = self.extra["translator"](taught_features.float())
        outliers = {
            name: rows[torch.randint(len(rows), (len(y),))].to(self.device) for name, rows in self.outliers.items()
        }
        self.fit(outliers, features.detach())
        return {
            "cross-entropy": F.cross_entropy(logits, y),
            "logits": s.logits * distillation(logits, taught_logits.float()),
            "features": s.features * distillation(features, translated),
            "knn": s.knn * self.bound("knn", outliers["knn"], features),
            "latents": s.latents * self.bound("latents", outliers["latents"], features),
        }

    def fit(self, outliers: dict[str, torch.Tensor], features: torch.Tensor) -> None:
        """One step of maximum likelihood of each q on pairs of outliers and features."""
        loss = sum(gaussian_fit(*self.extra[name](rows), features) for name, rows in outliers.items())
        self.fitting.zero_grad()
        loss.backward()
        for name in outliers:
            processes.average_gradients(self.extra[name])
        self.fitting.step()

    def bound(self, name: str, outliers: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """CLUB's bound with q as it stands; its gradient reaches the features alone."""
        with torch.no_grad():
            mean, log_variance = self.extra[name](outliers)
        return club(mean, log_variance, features)

    def parts(self) -> dict[str, Any]:
        return super().parts() | {"fitting": self.fitting}
