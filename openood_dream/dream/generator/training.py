"""The two trainings of a small latent diffusion pipeline: its autoencoder, then its denoiser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision.transforms import RandomHorizontalFlip
from tqdm import tqdm

from openood_dream.datasets.images import ImageList, Transform, random_flip
from openood_dream.device import autocast
from openood_dream.dream.generator.models import Autoencoding, Denoiser, noise_schedule, snr_weights
from openood_dream.dream.settings import GeneratorTraining
from openood_dream.parallel.processes import Processes
from openood_dream.parallel.state import Batches, read_state, restoring, set_random_state, write_state

KL_WEIGHT = 1e-4  # keeps the latents near a unit Gaussian without blurring the images
MIRROR = RandomHorizontalFlip(1.0)


def unit_range(images: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Images in [-1, 1], whatever their normalisation.

    Args:
        images: normalised images (B, 3, S, S).
        transform: how they were normalised.

    Returns:
        Images (B, 3, S, S).
    """
    return (images * transform.std + transform.mean) * 2 - 1


def unit_images(images: ImageList, rows: torch.Tensor) -> torch.Tensor:
    """Some images of a list in [-1, 1].

    Args:
        images: the list.
        rows: numbers in it (B,).

    Returns:
        Images (B, 3, S, S).
    """
    return unit_range(images.__getitems__(rows.tolist())["data"], images.transform)


# ---------------------------------------------------------------------------------------------------- one training loop


@dataclass(frozen=True)
class Session:
    """Where trainings run.

    Every process has its own random numbers, the main one those of a training by one process alone.

    Args:
        processes: those that train together, and their device.
        dtype: number format of the computation.
        folder: for the state that survives a kill.
        checkpoint_every: steps between two savings of it.
    """

    processes: Processes
    dtype: torch.dtype
    folder: Path
    checkpoint_every: int

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.processes.device

    def part_of(self, settings: GeneratorTraining, key: str) -> int:
        """This process's part of a batch.

        Args:
            settings: the section that has the batch size.
            key: its key there.

        Returns:
            How many images it takes.

        Raises:
            InputError: the batch cannot be shared out evenly.
        """
        try:
            return self.processes.part_of(getattr(settings, key))
        except ValueError as error:
            raise settings.error(key, str(error)) from None


@dataclass(frozen=True)
class Plan:
    """How a training goes.

    Args:
        steps: optimiser steps.
        lr: learning rate at its peak.
        warm_up: share of the steps until there.
        weight_decay: AdamW's weight decay.
        ema: decay of the moving average of the weights, which is what is left at the end; None: the weights themselves.
        key: the config key of `lr`, for messages.
    """

    steps: int
    lr: float
    warm_up: float
    weight_decay: float = 0.0
    ema: float | None = None
    key: str = "dream.generator.lr"


def one_cycle(optimizer: torch.optim.Optimizer, plan: Plan) -> torch.optim.lr_scheduler.OneCycleLR:
    """Warms the learning rate up, then lets it fall to zero as a cosine.

    Args:
        optimizer: whose learning rate it is.
        plan: peak, steps and warm-up, which has two steps at least: torch's rule divides by zero for one.

    Returns:
        The schedule, for a call a step.
    """
    share = max(plan.warm_up, 2 / plan.steps) if plan.steps > 2 else plan.warm_up
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, total_steps=plan.steps, pct_start=share)


class Stepper:
    """AdamW with one cycle, clipped gradients and, where the plan says so, a moving average of the weights.

    Args:
        nets: what is trained, on its device.
        plan: how.
    """

    def __init__(self, nets: nn.Module, plan: Plan) -> None:
        self.nets = nets
        self.parameters = [p for p in nets.parameters() if p.requires_grad]
        self.average = None if plan.ema is None else AveragedModel(nets, multi_avg_fn=get_ema_multi_avg_fn(plan.ema))
        self.optimizer = torch.optim.AdamW(self.parameters, plan.lr, weight_decay=plan.weight_decay, fused=True)
        self.schedule = one_cycle(self.optimizer, plan)

    def step(self, loss: torch.Tensor) -> None:
        """Moves the weights, and their average, so that the loss falls."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.nets)

    @property
    def result(self) -> nn.Module:
        """What the training would leave now: the average, or the networks themselves."""
        return self.nets if self.average is None else self.average.module

    def _parts(self) -> dict[str, Any]:
        parts = {"nets": self.nets, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts if self.average is None else parts | {"average": self.average}

    def state_dict(self) -> dict[str, Any]:
        """The state dicts of all parts by name."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def fit(
    name: str,
    nets: nn.Module,
    loss_of: Callable[[nn.Module], tuple[torch.Tensor, torch.Tensor]],
    plan: Plan,
    session: Session,
    *,
    batches: Batches | None = None,
    after_step: Callable[[int, nn.Module], None] = lambda done, nets: None,
) -> float:
    """Trains networks. A training that was killed goes on where its state was saved and, on a CPU, ends the same.

    Args:
        name: what is trained, for the progress bar; its first word names the file of the state.
        nets: the networks, in one module.
        loss_of: gives, of the module to call, the loss to lower and the loss to show.
        plan: how they are trained.
        session: where.
        batches: where `loss_of` takes its images from, if it does.
        after_step: is called in the main process with the steps done and what the training would leave then.

    Returns:
        The mean shown loss of the last tenth of the steps.

    Raises:
        InputError: the saved state is damaged, or of another number of processes.
        FloatingPointError: the loss is no longer a number; no state with such weights is saved.
    """
    processes, device = session.processes, session.device
    nets.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    trained = processes.prepare(nets)
    stepper, done, tail = Stepper(nets, plan), 0, list[torch.Tensor]()  # tail: the shown losses of the last tenth
    file = session.folder / f"{name.partition(' ')[0]}.state"
    if (state := read_state(file, processes, {"done": int, "tail": torch.Tensor})) is not None:
        with restoring(file):
            stepper.load_state_dict(state)
            done, tail = state["done"], list(state["tail"].to(device))
            set_random_state(state, processes, batches)
    finite = torch.tensor(True, device=device)  # read now and then, so that no step waits for the device
    with processes.progress(total=plan.steps, initial=done, desc=f"generator: training the {name}", unit="step") as bar:
        while done < plan.steps:
            loss, shown = loss_of(trained)
            stepper.step(loss)
            finite &= torch.isfinite(loss.detach())
            if done >= int(0.9 * plan.steps):
                tail.append(shown.detach())
            if done % 50 == 0:
                bar.set_postfix(loss=f"{shown.item():.4f}")
            done += 1
            bar.update()
            if done % session.checkpoint_every == 0 or done == plan.steps:
                check_finite(finite, f"the {name}, by step {done}", plan)
                last = torch.stack(tail) if tail else torch.empty(0)
                write_state(file, processes, {**stepper.state_dict(), "done": done, "tail": last}, batches)
            if processes.is_main:
                after_step(done, stepper.result)
    if stepper.average is not None:
        nets.load_state_dict(stepper.result.state_dict())
    check_finite(finite_weights(nets), f"the {name}, at its end", plan)
    return fmean(processes.gather(torch.stack(tail).mean().item()))


# -------------------------------------------------------------------------------------------------------- two trainings


def finite_weights(nets: nn.Module) -> torch.Tensor:
    """Whether all parameters of networks are finite, as a tensor on their device."""
    return torch.stack([torch.isfinite(parameter).all() for parameter in nets.parameters()]).all()


def check_finite(finite: torch.Tensor, what: str, plan: Plan) -> None:
    """Raises FloatingPointError, which names the remedy, unless numbers were finite.

    Args:
        finite: a truth value.
        what: whose numbers, and when.
        plan: the training's.
    """
    if not finite:
        raise FloatingPointError(
            f"generator: training {what}: the loss or a weight is not a finite number; lower {plan.key} ({plan.lr:g})"
        )


def train_vae(
    vae: AutoencoderKL, loader: DataLoader, settings: GeneratorTraining, session: Session, *, flip: bool = False
) -> float:
    """Trains an autoencoder: squared error and a light KL term.

    Args:
        vae: the autoencoder.
        loader: shuffled batches of training images.
        settings: steps and learning rate.
        session: where it is trained.
        flip: whether images are mirrored at random.

    Returns:
        The mean squared error of the last tenth of the steps.
    """
    batches, transform = Batches(loader), loader.dataset.transform  # type: ignore[attr-defined]

    def loss_of(nets: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        x = unit_range(next(batches)["data"], transform)
        x = (random_flip(x) if flip else x).to(session.device, memory_format=torch.channels_last)
        with autocast(session.device, session.dtype):
            reconstruction, divergence = nets(x)
        error = F.mse_loss(reconstruction, x)
        return error + KL_WEIGHT * divergence, error

    plan = Plan(settings.vae_steps, settings.vae_lr, warm_up=0.1, key=settings.key("vae_lr"))
    return fit("autoencoder", Autoencoding(vae), loss_of, plan, session, batches=batches)


@torch.inference_mode()
def encode_images(
    vae: AutoencoderKL, loader: DataLoader, session: Session, *, mirrored: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes all images of a loader.

    Args:
        vae: the autoencoder.
        loader: batches of images.
        session: where it computes.
        mirrored: whether each image is mirrored first.

    Returns:
        Mean and standard deviation (N, C, L, L) of the latent posterior of every image.
    """
    vae.eval()
    posteriors, transform = [], loader.dataset.transform  # type: ignore[attr-defined]
    for batch in tqdm(loader, desc="generator: latents", leave=False):
        x = unit_range(batch["data"], transform)
        x = (MIRROR(x) if mirrored else x).to(session.device, memory_format=torch.channels_last)
        with autocast(session.device, session.dtype):
            posteriors.append(vae.encode(x).latent_dist)
    return torch.cat([p.mean.float() for p in posteriors]), torch.cat([p.std.float() for p in posteriors])


def attention(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """The way in which attention is computed while a network is trained, within the block.

    In bfloat16 on a CPU the backward pass of torch's fused attention takes fifteen times as long as the forward pass; by
    products and a softmax the whole step of a UNet is a sixth to a quarter shorter.

    Args:
        device: where the network computes.
        dtype: number format of the computation.
    """
    if device.type == "cpu" and dtype is torch.bfloat16:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


@dataclass(frozen=True)
class Samples:
    """What a denoiser is trained on: N images, encoded.

    Args:
        mean: means (N, C, L, L) of their latent posteriors, scaled.
        std: standard deviations (N, C, L, L) of these, scaled.
        labels: class labels (N,).
        embeddings: the images' own unit embeddings h(x) (N, m).
    """

    mean: torch.Tensor
    std: torch.Tensor
    labels: torch.Tensor
    embeddings: torch.Tensor


def train_denoiser(
    nets: Denoiser,
    samples: Samples,
    anchors: torch.Tensor,
    settings: GeneratorTraining,
    session: Session,
    after_step: Callable[[int, nn.Module], None] = lambda done, nets: None,
) -> float:
    """Trains noise predictor and text transformer.

    In place of T(y) a sample has ||T(y)|| h(x) with probability `embedding_fraction`, so that moving the
    embedding moves the image; `empty_fraction` of the samples have the empty prompt (classifier-free guidance).

    Args:
        nets: noise predictor and text transformer.
        samples: the encoded training images.
        anchors: T(y) (C, m).
        settings: steps, learning rate and shares.
        session: where they are trained.
        after_step: as `fit` takes it.

    Returns:
        The mean squared error of the last tenth of the steps.
    """
    device = session.device
    noise = noise_schedule(settings.prediction)
    mean, std, labels = (tensor.to(device) for tensor in (samples.mean, samples.std, samples.labels))
    norms = anchors.norm(dim=1)[samples.labels.cpu()].unsqueeze(1).to(device)
    anchors, embeddings = anchors.to(device), samples.embeddings.to(device)
    batch_size = session.part_of(settings, "batch_size")
    # of the samples that do not have the empty prompt, since that is drawn apart
    own_share = settings.embedding_fraction / (1 - settings.empty_fraction) if settings.empty_fraction < 1 else 0.0

    def loss_of(nets: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        picked = torch.randint(len(labels), (batch_size,), device=device)
        y, h = labels[picked], embeddings[picked]
        z = mean[picked] + std[picked] * torch.randn_like(std[picked])
        drawn, t = torch.randn_like(z), torch.randint(noise.config.num_train_timesteps, (len(z),), device=device)
        moved = torch.rand(len(z), 1, device=device) < own_share
        if settings.embedding_noise:
            h = F.normalize(h + settings.embedding_noise * torch.randn_like(h), dim=1)
        moves = torch.where(moved, h * norms[picked] - anchors[y], 0.0)
        blank = torch.rand(len(z), device=device) < settings.empty_fraction
        target = drawn if settings.prediction == "epsilon" else noise.get_velocity(z, drawn, t)
        noisy = noise.add_noise(z, drawn, t).contiguous(memory_format=torch.channels_last)
        with attention(device, session.dtype), autocast(device, session.dtype):
            guess = nets(noisy, t, y, moves, blank)
        error = F.mse_loss(guess, target)
        if settings.min_snr is None:
            return error, error
        squares = (guess - target).square().flatten(1).mean(1)
        return (snr_weights(noise, t, settings.min_snr) * squares).mean(), error

    plan = Plan(settings.steps, settings.lr, warm_up=0.05, weight_decay=0.01, ema=settings.ema, key=settings.key("lr"))
    return fit("diffusion model", nets, loss_of, plan, session, after_step=after_step)
