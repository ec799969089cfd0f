"""Cross-entropy training, the registry of trainers, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream import plugins
from openood_dream.datasets.settings import IMAGINED, OptimizerSettings
from openood_dream.device import autocast, copied, pick_dtype
from openood_dream.errors import InputError, check_name
from openood_dream.networks.settings import AnyNetwork, GenerativeNetwork
from openood_dream.parallel import processes as parallel
from openood_dream.parallel.processes import Processes, unwrap_model
from openood_dream.trainers.optimizers import Lookahead, groups, make_optimizer, make_schedule, running_mean
from openood_dream.trainers.settings import TRAINER_SETTINGS, Base, TrainerSettings

Batch = dict[str, Any]  # "data" (B, 3, H, W), "label" (B,), and more that trainers do not read
Terms = dict[str, torch.Tensor]  # the terms of a loss, weighted, by name

TRAINERS: dict[str, type[BaseTrainer]] = {}

TrainerT = TypeVar("TrainerT", bound="type[BaseTrainer]")


def trainer(name: str, settings: type[TrainerSettings]) -> Callable[[TrainerT], TrainerT]:
    """Registers a trainer.

    Args:
        name: what `trainer.name` calls it.
        settings: the model of its section `trainer`.
    """

    def register(cls: TrainerT) -> TrainerT:
        plugins.add(TRAINERS, "trainer", name, cls, TRAINER_SETTINGS, settings)
        cls.name, cls.Settings = name, settings
        return cls

    return register


def get_trainer(settings: TrainerSettings) -> type[BaseTrainer]:
    """The trainer class that a section `trainer` names; InputError lists the names where it is none of ours."""
    check_name(settings.where("name"), settings.name, TRAINERS)
    return TRAINERS[settings.name]


def check_auxiliary(
    cls: type[BaseTrainer], imglist: str | None, keeps_class: bool | None, error: Callable[[str], InputError]
) -> None:
    """Checks that the images which the dream section imagines are of the kind that a trainer learns from.

    Args:
        cls: the trainer.
        imglist: `dataset.oe.imglist_pth`; any other list than the imagined one is the user's business.
        keeps_class: whether the sampler of the dream section finds inliers; None without such a section.
        error: makes the InputError about `dream.outliers.method`.

    Raises:
        InputError: inliers where outliers are needed, or the other way round.
    """
    if not cls.auxiliary or imglist != IMAGINED or keeps_class is None:
        return
    if keeps_class != cls.inliers:
        kinds = {True: "inliers", False: "outliers"}
        raise error(f"the trainer {cls.name} learns from {kinds[cls.inliers]}, the sampler finds {kinds[keeps_class]}")


WATCHED_EVERY = 50  # steps after which it is read from the device whether they were all finite


class Plan(NamedTuple):
    """What a training is going to be, as far as it is known before it."""

    network: AnyNetwork
    shape: Mapping[str, int]  # image_size, num_classes and channels, as networks.factory takes them
    epochs: int
    batch_size: int | None = (
        None  # ID images of each process in a step, all views of them; None where the processes are not known yet
    )
    smallest: int | None = None  # images of the smallest class, all views of them; None where the list is not there yet


def fc_layer(net: nn.Module) -> nn.Linear:
    """The last layer of a network in OpenOOD's protocol, from features to logits."""
    return cast(Any, net).get_fc_layer()


class Logistic(nn.Linear):
    """phi, a Linear(1, 2) from energies to logits of outlier and ID; it begins with a rise of 2 per nat."""

    LEAST = 1.0  # of the difference of the two logits, per nat

    def __init__(self) -> None:
        super().__init__(1, 2)
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.bias.zero_()

    @torch.no_grad()
    def hold(self) -> None:
        """Makes phi rise with the energy by `LEAST` or more: the nearest phi that does.

        Left free, phi may learn that outliers have the larger energies: the loss is as small, and the score reversed.
        """
        outlier, id_ = self.weight
        lack = (self.LEAST - (id_ - outlier)).clamp_min(0) / 2
        outlier -= lack
        id_ += lack


class LossTerms(nn.Module):
    """A network and what is trained beside it as one module, so that processes average all gradients at once.

    Args:
        net: the network.
        extra: what is trained beside it.
        terms: computes the terms of the loss of a step's batches with both.
    """

    def __init__(self, net: nn.Module, extra: nn.Module, terms: Callable[..., Terms]) -> None:
        super().__init__()
        self.net, self.extra, self.terms = net, extra, terms

    def forward(self, *batches: Batch) -> Terms:
        return self.terms(*batches)


@trainer("base", Base)
class BaseTrainer:
    """Cross-entropy on the ID images, by default with OpenOOD's SGD, Nesterov momentum and cosine schedule per step.

    Args:
        net: a network in OpenOOD's protocol on its device; OpenOOD may have wrapped it in DistributedDataParallel.
        train_loader: batches of ID images, {"data": (B, 3, H, W), "label": (B,)}.
        settings: the trainer's own settings, of its class `Settings`.
        optimizer: epochs, learning rate, momentum, weight decay, and the norm that gradients are clipped to.
        precision: auto, float32 or bfloat16.
        processes: those that train together; None: those that are connected already, or this one alone.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[TrainerSettings]]
    auxiliary = False  # whether a loader of outliers comes after the training loader
    inliers = False  # whether that loader's images are inliers, labelled with their class
    needs_teacher = False  # whether it takes `teacher`, `embeddings` and `latents` besides
    views = False  # whether batches may have two views of each image
    generative = False  # whether its networks are generative models

    settings: TrainerSettings

    def __init__(
        self,
        net: nn.Module,
        train_loader: DataLoader,
        *,
        settings: TrainerSettings,
        optimizer: OptimizerSettings,
        precision: str = "auto",
        processes: Processes | None = None,
    ) -> None:
        self.given, self.net, self.train_loader = net, unwrap_model(net), train_loader
        for part, loader in zip(("train", "oe"), self.loaders()):
            if not len(loader):
                raise InputError(f"dataset.{part}.batch_size: no batch is left of the images; lower it")
        self.settings, self.options = settings, optimizer
        self.device = next(net.parameters()).device
        self.dtype = pick_dtype(precision, self.device)
        self.processes = processes or parallel.current(self.device)
        self.epoch = 0
        self.net.to(memory_format=torch.channels_last)
        self.extra = nn.ModuleDict(self.additions()).to(self.device)
        self.memory = nn.ModuleDict(self.memories()).to(self.device)
        self.model = self.processes.prepare(LossTerms(self.net, self.extra, self.terms))
        self.optimizer, self.scheduler = self.schedule()
        steps = optimizer.num_epochs * len(train_loader)
        self.lookahead = Lookahead(self.net, steps) if optimizer.lookahead else None
        self.average = running_mean(self.net, optimizer.ema) if optimizer.ema else None

    @classmethod
    def check_plan(cls, settings: Any, plan: Plan) -> None:
        """Checks, before anything is computed, that a training would be what its name says.

        Args:
            settings: the trainer's own settings, of its class `Settings`.
            plan: what else the training is going to be.

        Raises:
            InputError: names the key that it cannot be with.
        """
        if isinstance(plan.network, GenerativeNetwork) != cls.generative:
            kind = "a generative network: vae, glow or pixelcnnpp" if cls.generative else "a classifier: timm:<model>"
            raise plan.network.error("name", f"the trainer {cls.name} needs {kind}, got {plan.network.name!r}")

    def additions(self) -> dict[str, nn.Module]:
        """What the method trains besides the network."""
        return {}

    def memories(self) -> dict[str, nn.Module]:
        """What the method remembers from step to step, as buffers; each process has its own."""
        return {}

    def schedule(self) -> tuple[Optimizer, LRScheduler]:
        """The optimiser, and the schedule of its learning rate, which takes a step with it."""
        optimizer = make_optimizer(self.parameters(), self.options)
        steps = self.options.num_epochs * len(self.train_loader)
        return optimizer, make_schedule(optimizer, self.options, steps)

    def parameters(self) -> list[Any]:
        """What the optimiser trains: parameters, or groups of them with a rate of their own."""
        own = list(self.extra.parameters())
        if self.options.shift_factor == 1:
            return [*self.net.parameters(), *own]
        return [*groups(self.net, self.options), *([{"params": own}] if own else [])]

    def loaders(self) -> list[DataLoader]:
        """The loaders that an epoch draws from."""
        return [self.train_loader]

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        """One tuple of the batches that a step needs, for every step of an epoch."""
        return zip(self.train_loader)

    def images(self, *batches: Batch) -> torch.Tensor:
        """The images of one or several batches, joined, on the device."""
        x = torch.cat([batch["data"] for batch in batches]) if len(batches) > 1 else batches[0]["data"]
        return x.to(self.device, memory_format=torch.channels_last, non_blocking=True)

    def labels(self, batch: Batch) -> torch.Tensor:
        """The labels (B,) of a batch on the device."""
        return copied(batch["label"], self.device)

    def logits(self, *batches: Batch) -> torch.Tensor:
        """Logits of all the batches' images in one pass, in mixed precision, returned in float32."""
        with autocast(self.device, self.dtype):
            return self.net(self.images(*batches)).float()

    def logits_and_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, C) and the features (B, D) before the classifier, of images as `images` gives them."""
        with autocast(self.device, self.dtype):
            logits, features = self.net(images, return_feature=True)
        return logits.float(), features.float()

    def cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The cross-entropy of logits (B, C) with labels (B,), smoothed as the config says."""
        return F.cross_entropy(logits, labels, label_smoothing=self.options.label_smoothing)

    def terms(self, *batches: Batch) -> Terms:
        """The terms of the loss of one step, weighted, by name."""
        (batch,) = batches
        return {"cross-entropy": self.cross_entropy(self.logits(batch), self.labels(batch))}

    def step(self, *batches: Batch) -> Terms:
        """One step of the optimiser on the sum of the terms; returns them, detached."""
        terms: Terms = self.model(*batches)
        self.optimizer.zero_grad()
        reduce(torch.add, terms.values()).backward()
        if self.options.clip_norm:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.options.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        if self.lookahead is not None:
            self.lookahead.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        return {name: term.detach() for name, term in terms.items()}

    def train_epoch(self, epoch_idx: int) -> tuple[nn.Module, dict[str, Any]]:
        """Trains for one pass over the ID images.

        Args:
            epoch_idx: number of the epoch; the first is 1.

        Returns:
            The network as it was given, and {"epoch_idx", "loss": its mean, "terms": the mean of each}.

        Raises:
            FloatingPointError: the loss is no longer a number; the message names the step and the terms.
        """
        self.given.train()
        self.model.train()
        self.epoch = epoch_idx
        totals: Terms = {}
        watch = Watch()
        steps = len(self.train_loader)
        bar = tqdm(self.batches(), total=steps, desc=f"epoch {epoch_idx}", unit="step", leave=False, delay=2)
        for number, batches in enumerate(bar, 1):
            terms = self.step(*batches)
            watch.see(terms)
            if number % WATCHED_EVERY == 0:
                self.check(watch)
            for name, term in terms.items():
                totals[name] = totals[name] + term if name in totals else term
        self.check(watch)
        means = {name: total.item() / steps for name, total in totals.items()}
        return self.given, {"epoch_idx": epoch_idx, "loss": sum(means.values()), "terms": means}

    def check(self, watch: Watch) -> None:
        """Raises FloatingPointError for the first step of an epoch whose terms are not all finite."""
        if found := watch.first():
            step, terms = found
            parts = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            raise FloatingPointError(
                f"epoch {self.epoch}, step {step}: the loss is not finite ({parts}); lower optimizer.lr "
                f"({self.options.lr}), or set optimizer.clip_norm"
            )

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: the trained one, or the running mean of its weights."""
        return self.net if self.average is None else self.average.module

    def remarks(self) -> list[str]:
        """What makes the trained network worth less than its name says, each in one line; asked for after training."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later `load_state_dict` needs to go on as if nothing had happened, random numbers apart."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def parts(self) -> dict[str, Any]:
        """What has a state, by name."""
        return {
            "net": self.net,
            "extra": self.extra,
            "memory": self.memory,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            **({} if self.lookahead is None else {"lookahead": self.lookahead}),
            **({} if self.average is None else {"average": self.average}),
        }


class Watch:
    """Watches the terms of the steps of an epoch; they are read from the device only where `first` is asked."""

    def __init__(self) -> None:
        self.steps = 0
        # by the names of the terms, which change where outliers begin: the number of the first bad step, or 0, and its terms
        self.seen: dict[tuple[str, ...], torch.Tensor] = {}

    def see(self, terms: Terms) -> None:
        """Looks at the terms of a step, on their device."""
        self.steps += 1
        names, row = tuple(terms), torch.stack([term.float() for term in terms.values()])
        now = torch.cat([row.new_full((1,), self.steps), row])
        before = self.seen.get(names)
        unseen = ~row.isfinite().all() if before is None else ~row.isfinite().all() & (before[0] == 0)
        self.seen[names] = torch.where(unseen, now, torch.zeros_like(now) if before is None else before)

    def first(self) -> tuple[int, dict[str, float]] | None:
        """The first step whose terms were not all finite, and they; None where all were."""
        found = []
        for names, seen in self.seen.items():
            step, *values = seen.tolist()
            if step:
                found.append((int(step), dict(zip(names, values, strict=True))))
        return min(found, key=lambda one: one[0], default=None)


class OutlierTrainer(BaseTrainer):
    """Training with a second loader of outliers, cycled where it is the shorter one; both batches pass the net together.

    Args:
        net: see BaseTrainer.
        train_loader: see BaseTrainer.
        outlier_loader: batches of auxiliary images; labels of outliers are not read.
        options: the keyword arguments of BaseTrainer.
    """

    auxiliary = True

    def __init__(self, net: nn.Module, train_loader: DataLoader, outlier_loader: DataLoader, **options: Any) -> None:
        self.outlier_loader = outlier_loader
        super().__init__(net, train_loader, **options)

    def loaders(self) -> list[DataLoader]:
        return [self.train_loader, self.outlier_loader]

    def batches(self) -> Iterator[tuple[Batch, ...]]:
        def outliers() -> Iterator[Batch]:
            while True:
                yield from self.outlier_loader

        return zip(self.train_loader, outliers())

    def remarks(self) -> list[str]:
        images, classes = len(cast(Any, self.outlier_loader.dataset)), fc_layer(self.net).out_features
        if images >= classes:
            return []
        kind = "inliers" if self.inliers else "outliers"
        return [f"learned from {images} {kind}, fewer than the {classes} classes; draw or list more (dataset.oe)"]
