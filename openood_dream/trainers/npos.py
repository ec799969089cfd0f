"""NPOS (Tao et al., ICLR 2023): outliers of no assumed shape around the features that lie far from their class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.losses import compactness, dispersion, moved_prototypes
from openood_dream.trainers.base import BaseTrainer, bare, trainer
from openood_dream.trainers.queue import ClassQueue

PROJECTION = 128  # numbers that the head makes of a feature, and width of the outlier detector


class Outliers(nn.Module):
    """The outliers of each class, `rows` (C, n, D), which the classes get in turn."""

    def __init__(self, classes: int, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, count, width))
        self.register_buffer("turns", torch.zeros((), dtype=torch.long))  # how many there were


@trainer("npos")
class NPOSTrainer(BaseTrainer):
    """CIDER's dispersion and compactness of projected features, and from `start_epoch_KNN` on, once the queue is full,
    loss_weight * binary cross-entropy that tells unit features from outliers.

    Outliers are DREAM-OOD's k-NN outliers of the class's queue (outliers.sample_round). Each step finds those of one
    class anew, in turn: a queue takes longer to turn over than all the turns. The classifier learns from features
    that it does not change, to give logits; the method's own score is the k-NN distance (knn).
    """

    title = "NPOS"

    def additions(self) -> nn.ModuleDict:
        a, fc = self.settings.trainer_args, bare(self.net).get_fc_layer()
        width, classes = fc.in_features, fc.out_features
        return nn.ModuleDict(
            {
                "head": nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION)),
                "detector": nn.Sequential(nn.Linear(width, PROJECTION), nn.ReLU(), nn.Linear(PROJECTION, 1)),
                "prototypes": Prototypes(classes),
                "queue": ClassQueue(classes, a.sample_number, width),
                "outliers": Outliers(classes, a.pick_nums * a.ID_points_num, width),
            }
        )

    def terms(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        a, y, extra = self.settings.trainer_args, self.labels(batch), self.extra
        _, features = self.logits_and_features(self.images(batch))
        projected = F.normalize(extra["head"](features), dim=1)
        prototypes = moved_prototypes(extra["prototypes"].rows, projected, y, a.proto_m)
        extra["prototypes"].rows = prototypes.detach()
        terms = {
            "classifier": F.cross_entropy(bare(self.net).get_fc_layer()(features.detach()), y),
            "dispersion": a.w_disp * dispersion(prototypes, a.temp),
            "compactness": a.w_comp * compactness(projected, prototypes.detach(), y, a.temp),
        }
        unit = F.normalize(features, dim=1)
        extra["queue"].push(unit.detach(), y)
        if self.epoch >= a.start_epoch_KNN and extra["queue"].full():
            outliers = self.outliers()
            found = extra["detector"](torch.cat([unit, outliers]))[:, 0]
            inside = torch.zeros_like(found)
            inside[: len(unit)] = 1
            terms["outliers"] = a.loss_weight * F.binary_cross_entropy_with_logits(found, inside)
        return terms

    def outliers(self) -> torch.Tensor:
        """Outliers (n, D) of all classes that have some, those of the class whose turn it is found anew."""
        from openood_dream.outliers import boundary_points, sample_round  # with faiss, which other trainers do without

        a, queue, outliers = self.settings.trainer_args, self.extra["queue"].rows, self.extra["outliers"]
        turn = int(outliers.turns)
        z = queue[turn % len(queue)]
        z = z.cpu() if z.device.type == "mps" else z  # which has no float64
        edge, _ = boundary_points(z, a.K, a.select)
        points = edge[torch.randperm(len(edge))[: a.pick_nums].to(edge.device)]
        draws = torch.randn(a.sample_from, z.shape[1]).to(z)
        _, vectors, _ = sample_round(z, points, a.K, a.cov_mat, draws, a.ID_points_num)
        outliers.rows[turn % len(queue)] = vectors.flatten(0, 1)
        outliers.turns += 1
        return outliers.rows[: turn + 1].flatten(0, 1)


class Prototypes(nn.Module):
    """A unit vector for each class, `rows` (C, PROJECTION); zero until the first image of the class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, PROJECTION))
