"""NPOS (Tao et al., ICLR 2023): outliers of no assumed shape around the features that lie far from their class."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from openood_dream.device import copied
from openood_dream.losses import compactness, dispersion, moved_prototypes
from openood_dream.sampling.knn import boundary_points, sample_round
from openood_dream.trainers.base import BaseTrainer, Batch, Plan, Terms, fc_layer, trainer
from openood_dream.trainers.queue import ClassQueue, Participation, check_queue, remember
from openood_dream.trainers.settings import NPOS

PROJECTION = 128  # numbers that the head makes of a feature, and width of the outlier detector


class Outliers(nn.Module):
    """The outliers of each class, which the classes get in turn.

    Args:
        classes: number of classes C.
        count: outliers of each class.
        width: numbers in a feature, D.
    """

    rows: torch.Tensor  # (C, count, D)
    turns: torch.Tensor  # how many there were

    def __init__(self, classes: int, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, count, width))
        self.register_buffer("turns", torch.zeros((), dtype=torch.long))
        self._turn: int | None = None  # what `turns` is, which is not asked for of a GPU each time

    def next_turn(self) -> int:
        """The number of this turn, from 0; the next one is another."""
        self._turn = int(self.turns) if self._turn is None else self._turn + 1
        self.turns += 1
        return self._turn

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._turn = None
        super()._load_from_state_dict(*args, **options)


class Prototypes(nn.Module):
    """A unit vector for each class; zero before the training, and for a class without images."""

    rows: torch.Tensor  # (C, PROJECTION)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(classes, PROJECTION))


@trainer("npos", NPOS)
class NPOSTrainer(BaseTrainer):
    """CIDER's dispersion and compactness of projected features, and from `start_epoch_KNN` on, once the queue is full,
    loss_weight * binary cross-entropy that tells features from outliers.

    Outliers are DREAM-OOD's k-NN outliers of the class's queue (sampling.knn.sample_round): distances are those of unit
    vectors, but noise is added to the features as they are, and so is what the detector sees (NPOS, Sec. 3). Each step
    finds those of one class anew, in turn: a queue takes longer to turn over than all the turns. The classifier learns
    from features that it does not change, to give logits; the method's own score is the k-NN distance (knn).

    Prototypes begin as the mean of their class's projected features, for which the images are passed once.
    """

    settings: NPOS
    views = True

    @classmethod
    def check_plan(cls, settings: NPOS, plan: Plan) -> None:
        super().check_plan(settings, plan)
        check_queue(settings.trainer_args, "start_epoch_KNN", plan)

    def additions(self) -> dict[str, nn.Module]:
        width = fc_layer(self.net).in_features
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTION))
        self.detector = nn.Sequential(nn.Linear(width, PROJECTION), nn.ReLU(), nn.Linear(PROJECTION, 1))
        return {"head": self.head, "detector": self.detector}

    def memories(self) -> dict[str, nn.Module]:
        a, fc = self.settings.trainer_args, fc_layer(self.net)
        self.prototypes = Prototypes(fc.out_features)
        self.queue = ClassQueue(fc.out_features, a.sample_number, fc.in_features)
        self.found = Outliers(fc.out_features, a.pick_nums * a.ID_points_num, fc.in_features)
        self.participation = Participation()
        return {
            "prototypes": self.prototypes,
            "queue": self.queue,
            "outliers": self.found,
            "participation": self.participation,
        }

    def images(self, *batches: Batch) -> torch.Tensor:
        return super().images(*[{"data": view} for batch in batches for view in _views(batch)])

    def labels(self, batch: Batch) -> torch.Tensor:
        return copied(_known(batch), self.device)

    def train_epoch(self, epoch_idx: int) -> tuple[nn.Module, dict[str, Any]]:
        if not self.prototypes.rows.any():
            self.start_prototypes()
        return super().train_epoch(epoch_idx)

    @torch.no_grad()
    def start_prototypes(self) -> None:
        """Makes each prototype the direction of the mean of its class's projected features."""
        self.model.eval()
        rows = torch.zeros_like(self.prototypes.rows)
        for batch in tqdm(self.train_loader, desc="prototypes", unit="step", leave=False, delay=2):
            rows.index_add_(0, self.labels(batch), self.projected(self.logits_and_features(self.images(batch))[1]))
        total = torch.stack(self.processes.gather(rows.cpu())).sum(0)
        self.prototypes.rows = F.normalize(total, dim=1).to(rows.device)

    def projected(self, features: torch.Tensor) -> torch.Tensor:
        """The unit vectors (B, PROJECTION) that the head makes of features (B, D)."""
        return F.normalize(self.head(features), dim=1)

    def terms(self, *batches: Batch) -> Terms:
        (batch,) = batches
        a, y = self.settings.trainer_args, self.labels(batch)
        _, features = self.logits_and_features(self.images(batch))
        projected, most = self.projected(features), int(_known(batch).bincount().max())
        prototypes = moved_prototypes(self.prototypes.rows, projected, y, a.proto_m, most)
        self.prototypes.rows = prototypes.detach()
        terms = {
            "classifier": self.cross_entropy(fc_layer(self.net)(features.detach()), y),
            "dispersion": a.w_disp * dispersion(prototypes, a.temp),
            "compactness": a.w_comp * compactness(projected, prototypes.detach(), y, a.temp),
        }
        remember(self.queue, features.detach(), y, _known(batch), a)
        with_outliers = self.epoch >= a.start_epoch_KNN and self.queue.full()
        self.participation.count(with_outliers)
        if with_outliers:
            outliers = self.outliers()
            logits = self.detector(torch.cat([features, outliers]))[:, 0]
            is_id = torch.zeros_like(logits)
            is_id[: len(features)] = 1
            terms["outliers"] = a.loss_weight * F.binary_cross_entropy_with_logits(logits, is_id)
        return terms

    def remarks(self) -> list[str]:
        settings = self.settings.trainer_args
        return self.participation.remarks(self.queue, settings, "start_epoch_KNN", "CIDER, without outliers")

    def outliers(self) -> torch.Tensor:
        """Outliers (n, D) of all classes that have some, those of the class whose turn it is found anew."""
        a, queue, found = self.settings.trainer_args, self.queue.rows, self.found
        turn = found.next_turn()
        raw = queue[turn % len(queue)]
        raw = raw.cpu() if raw.device.type == "mps" else raw  # which has no float64
        raw = raw + 1e-6 * (raw == 0).all(1, keepdim=True)  # a feature of zeros has no direction: any will do
        unit, length = F.normalize(raw, dim=1), raw.norm(dim=1)
        edge, _ = boundary_points(unit, a.K, a.select)
        points = edge[copied(torch.randperm(len(edge))[: a.pick_nums], edge.device)]
        draws = copied(torch.randn(a.sample_from, raw.shape[1]), raw.device)
        kept = [
            # the direction of z + s g is that of z / |z| + s / |z| g
            raw[point] + a.cov_mat * draws[sample_round(unit, point[None], a.K, sigma, draws, a.ID_points_num)[0][0]]
            for point, sigma in zip(points, (a.cov_mat / length[points]).tolist(), strict=True)
        ]
        found.rows[turn % len(queue)] = torch.cat(kept)
        return found.rows[: turn + 1].flatten(0, 1)


def _views(batch: Batch) -> list[torch.Tensor]:
    """The images of a batch, one tensor for each view of them."""
    data: Any = batch["data"]
    return [data] if isinstance(data, torch.Tensor) else list(data)


def _known(batch: Batch) -> torch.Tensor:
    """The labels of the images of all views, where they came from."""
    return batch["label"].repeat(len(_views(batch)))
