"""Cross-entropy training, the registry of trainers, and what all of them share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream.config import InputError, origin, settings
from openood_dream.data import IMAGINED
from openood_dream.networks import autocast, pick_dtype

TRAINERS: dict[str, type[BaseTrainer]] = {}


def trainer(name: str) -> Callable[[type[BaseTrainer]], type[BaseTrainer]]:
    """Registers a trainer under the name that `trainer.name` uses."""

    def register(cls: type[BaseTrainer]) -> type[BaseTrainer]:
        TRAINERS[name] = cls
        return cls

    return register


def get_trainer(config: dict) -> type[BaseTrainer]:
    """The trainer class of `trainer.name`; InputError lists the known names."""
    name = (config.get("trainer") or {}).get("name")
    if name not in TRAINERS:
        near = difflib.get_close_matches(str(name), TRAINERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(sorted(TRAINERS))
        raise InputError(
            f"{origin(config, 'trainer.name') or 'config'}: trainer.name: unknown trainer {name!r}; {hint}known are {known}"
        )
    check_auxiliary(config, TRAINERS[name])
    return TRAINERS[name]


def check_auxiliary(config: dict, cls: type[BaseTrainer]) -> None:
    """Raises InputError where the images that the config imagines are not of the kind that a trainer learns from."""
    auxiliary = (config.get("dataset") or {}).get("oe") or {}
    if not cls.auxiliary or auxiliary.get("imglist_pth") != IMAGINED or not config.get("dream"):
        return
    method = settings(config, "dream").outliers.method
    if (method == "inlier") != cls.inliers:
        where, expected = origin(config, "dream.outliers.method") or "config", "inlier" if cls.inliers else "outliers"
        name = config["trainer"]["name"]
        raise InputError(f"{where}: dream.outliers.method: the trainer {name} learns from {expected}, got {method!r}")


@trainer("base")
class BaseTrainer:
    """Cross-entropy on the ID images: SGD with Nesterov momentum, cosine schedule per step down to 1e-6 (OpenOOD)."""

    auxiliary = False  # whether a loader of outliers comes after the training loader
    inliers = False  # whether that loader's images are inliers, labelled with their class
    title = "cross-entropy"

    def __init__(self, net: nn.Module, train_loader: DataLoader, config: dict) -> None:
        self.net, self.train_loader, self.config = net, train_loader, config
        self.settings = settings(config, "trainer")
        self.device = next(net.parameters()).device
        self.dtype = pick_dtype(config.get("precision"), self.device)
        net.to(memory_format=torch.channels_last)
        options = config["optimizer"]
        self.optimizer = torch.optim.SGD(
            self.parameters(),
            options["lr"],
            momentum=options["momentum"],
            weight_decay=options["weight_decay"],
            nesterov=True,
        )
        total, lowest = options["num_epochs"] * len(train_loader), 1e-6 / options["lr"]
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * step / total))
        )

    def parameters(self) -> Iterable[nn.Parameter]:
        """What the optimiser trains."""
        return self.net.parameters()

    def batches(self) -> Iterator[tuple[dict[str, Any], ...]]:
        """One tuple of the batches that a step needs, for every step of an epoch."""
        return zip(self.train_loader)

    def images(self, *batches: dict[str, Any]) -> torch.Tensor:
        """The images of one or several batches, joined, on the device."""
        x = torch.cat([batch["data"] for batch in batches]) if len(batches) > 1 else batches[0]["data"]
        return x.to(self.device, memory_format=torch.channels_last, non_blocking=True)

    def labels(self, batch: dict[str, Any]) -> torch.Tensor:
        return batch["label"].to(self.device, non_blocking=True)

    def logits(self, *batches: dict[str, Any]) -> torch.Tensor:
        """Logits of all the batches' images in one pass, in mixed precision, returned in float32."""
        with autocast(self.device, self.dtype):
            return self.net(self.images(*batches)).float()

    def loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of one step."""
        return F.cross_entropy(self.logits(batch), self.labels(batch))

    def train_epoch(self, epoch_idx: int) -> tuple[nn.Module, dict[str, float]]:
        """Trains for one pass over the ID images; returns the network and `{"epoch_idx", "loss"}`, the epoch's mean loss."""
        self.net.train()
        total, steps = torch.zeros((), device=self.device), len(self.train_loader)
        for batches in tqdm(self.batches(), total=steps, desc=f"epoch {epoch_idx}", unit="step", leave=False, delay=2):
            loss = self.loss(*batches)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            total += loss.detach()
        mean = total.item() / steps
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"epoch {epoch_idx}: the loss is {mean}; lower optimizer.lr ({self.config['optimizer']['lr']})"
            )
        return self.net, {"epoch_idx": epoch_idx, "loss": mean}


class OutlierTrainer(BaseTrainer):
    """Training with a second loader of outliers, cycled where it is the shorter one; both batches pass the net together."""

    auxiliary = True

    def __init__(
        self, net: nn.Module, train_loader: DataLoader, train_unlabeled_loader: DataLoader, config: dict
    ) -> None:
        self.outlier_loader = train_unlabeled_loader
        super().__init__(net, train_loader, config)

    def batches(self) -> Iterator[tuple[dict[str, Any], ...]]:
        def outliers() -> Iterator[dict[str, Any]]:
            while True:
                yield from self.outlier_loader

        return zip(self.train_loader, outliers())
