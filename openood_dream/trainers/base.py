"""Cross-entropy training, the registry of trainers, and what all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream.config import InputError, check_name, origin, settings
from openood_dream.data import IMAGINED
from openood_dream.networks import autocast, pick_dtype
from openood_dream.trainers import processes

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
    check_name("trainer.name", name, TRAINERS, origin(config, "trainer.name"))
    check_auxiliary(config, TRAINERS[name])
    return TRAINERS[name]


def check_auxiliary(config: dict, cls: type[BaseTrainer]) -> None:
    """Raises InputError where the images that the config imagines are not of the kind that a trainer learns from."""
    auxiliary = (config.get("dataset") or {}).get("oe") or {}
    if not cls.auxiliary or auxiliary.get("imglist_pth") != IMAGINED or not config.get("dream"):
        return
    method = settings(config, "dream").outliers.method
    if (method == "inlier") != cls.inliers:
        where, expected = origin(config, "dream.outliers.method"), "inlier" if cls.inliers else "outliers"
        name = config["trainer"]["name"]
        raise InputError(f"{where}: dream.outliers.method: the trainer {name} learns from {expected}, got {method!r}")


def bare(net: nn.Module) -> nn.Module:
    """The network itself, out of what shares its gradients with other processes."""
    return net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net


class Logistic(nn.Linear):
    """phi, a Linear(1, 2) from energies to logits of outlier and ID; it begins with a rise of 2."""

    LEAST = 1.0  # of the difference of the two logits, per nat

    def __init__(self) -> None:
        super().__init__(1, 2)
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.bias.zero_()

    @torch.no_grad()
    def hold(self) -> None:
        """Makes phi rise with the energy by `LEAST` or more: the nearest one that does.

        Left free, phi may learn that outliers have the larger energies: the loss is as small, the test score turned round.
        """
        outlier, inside = self.weight
        lack = (self.LEAST - (inside - outlier)).clamp_min(0) / 2
        outlier -= lack
        inside += lack


@trainer("base")
class BaseTrainer:
    """Cross-entropy on the ID images: SGD with Nesterov momentum, cosine schedule per step down to 1e-6 (OpenOOD)."""

    auxiliary = False  # whether a loader of outliers comes after the training loader
    inliers = False  # whether that loader's images are inliers, labelled with their class
    taught = False  # whether it takes `teacher`, `embeddings` and `latents` besides
    title = "cross-entropy"

    def __init__(self, net: nn.Module, train_loader: DataLoader, config: dict) -> None:
        self.net, self.train_loader, self.config = net, train_loader, config
        self.settings = settings(config, "trainer")
        self.device = next(net.parameters()).device
        self.dtype = pick_dtype(config.get("precision"), self.device)
        self.epoch = 0
        net.to(memory_format=torch.channels_last)
        self.extra = self.additions().to(self.device)
        processes.same(self.extra)
        options = config["optimizer"]
        self.optimizer = torch.optim.SGD(
            self.parameters(),
            options["lr"],
            momentum=options["momentum"],
            weight_decay=options["weight_decay"],
            nesterov=True,
        )
        self.clip_norm = options.get("clip_norm")
        total, lowest = options["num_epochs"] * len(train_loader), 1e-6 / options["lr"]
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * step / total))
        )

    def additions(self) -> nn.ModuleDict:
        """What the method trains or remembers besides the network; `self.extra` from then on."""
        return nn.ModuleDict()

    def parameters(self) -> list[Any]:
        """What the optimiser trains: parameters, or groups of them with a rate of their own."""
        return [*self.net.parameters(), *self.extra.parameters()]

    def loaders(self) -> list[DataLoader]:
        """The loaders that an epoch draws from."""
        return [self.train_loader]

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

    def logits_and_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, C) and the features (B, D) before the classifier, of images as `logits` makes them."""
        with autocast(self.device, self.dtype):
            logits, features = self.net(images, return_feature=True)
        return logits.float(), features.float()

    def terms(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The terms of the loss of one step, weighted, by name."""
        return {"cross-entropy": F.cross_entropy(self.logits(batch), self.labels(batch))}

    def step(self, *batches: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One step of the optimiser on the sum of the terms; returns them, detached."""
        terms = self.terms(*batches)
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        processes.average_gradients(self.extra)
        if self.clip_norm:
            nn.utils.clip_grad_norm_(
                [p for group in self.optimizer.param_groups for p in group["params"]], self.clip_norm
            )
        self.optimizer.step()
        self.scheduler.step()
        return {name: term.detach() for name, term in terms.items()}

    def train_epoch(self, epoch_idx: int) -> tuple[nn.Module, dict[str, Any]]:
        """Trains for one pass over the ID images; returns the network and `epoch_idx`, the mean `loss` and mean `terms`.

        Raises FloatingPointError that names the step and the terms where the loss is no longer a number.
        """
        self.net.train()
        self.epoch = epoch_idx
        totals, steps, before = {}, len(self.train_loader), {}
        bar = tqdm(self.batches(), total=steps, desc=f"epoch {epoch_idx}", unit="step", leave=False, delay=2)
        for number, batches in enumerate(bar, 1):
            terms = self.step(*batches)
            self.check(before, number - 1)  # a step late, so that a GPU never waits for it
            for name, term in terms.items():
                totals[name] = totals.get(name, 0) + term
            before = terms
        self.check(before, steps)
        means = {name: total.item() / steps for name, total in totals.items()}
        return self.net, {"epoch_idx": epoch_idx, "loss": sum(means.values()), "terms": means}

    def check(self, terms: dict[str, torch.Tensor], step: int) -> None:
        """Raises FloatingPointError unless all terms of a step are finite."""
        if terms and not math.isfinite(sum(terms.values()).item()):
            parts = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
            rate = self.config["optimizer"]["lr"]
            raise FloatingPointError(
                f"epoch {self.epoch}, step {step}: the loss is not finite ({parts}); lower optimizer.lr ({rate}), "
                "or set optimizer.clip_norm"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on as if nothing had happened, random numbers apart."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def parts(self) -> dict[str, Any]:
        """What has a state, by name."""
        return {
            "net": bare(self.net),
            "extra": self.extra,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }


class OutlierTrainer(BaseTrainer):
    """Training with a second loader of outliers, cycled where it is the shorter one; both batches pass the net together."""

    auxiliary = True

    def __init__(
        self, net: nn.Module, train_loader: DataLoader, train_unlabeled_loader: DataLoader, config: dict
    ) -> None:
        self.outlier_loader = train_unlabeled_loader
        super().__init__(net, train_loader, config)

    def loaders(self) -> list[DataLoader]:
        return [self.train_loader, self.outlier_loader]

    def batches(self) -> Iterator[tuple[dict[str, Any], ...]]:
        def outliers() -> Iterator[dict[str, Any]]:
            while True:
                yield from self.outlier_loader

        return zip(self.train_loader, outliers())
