"""Diffusion embeddings: the class token under which a pipeline denoises an image best, found by gradients (NCIS, Sec. 3.1).

The pipeline's own call encodes the prompts and asks its network, once a step, with gradients and a scheduler that hands it
noisy latents of the images; so no family of pipelines needs code of its own (Doorenbos et al., arXiv 2411.13619).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from openood_dream.datasets.images import ImageList
from openood_dream.dream.generator.training import unit_range
from openood_dream.dream.imaginer import Imaginer, flow_matching, image_seed, load_pipeline
from openood_dream.dream.inversion_settings import InversionSettings
from openood_dream.dream.placing import drawing_device
from openood_dream.dream.settings import SpaceSettings, SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.dream.space import first_per_class
from openood_dream.errors import out_of_memory, warn
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import read_tensors, write_tensors

LEVELS = 50  # noise levels that are drawn from, as many as NCIS's sampler has steps
PACKING = ["latents", "batch_size", "num_channels_latents", "height", "width"]  # how pipelines that pack latents do it
ELSE = "so that images cannot be inverted with it; expected dream.space.method: encoder"
SHARD = 64  # images whose tokens are written at a time


class Noisy(NamedTuple):
    """Noisy versions of latents.

    Args:
        latents: (N, ...), as the pipeline's network takes them.
        steps: their time steps (N,).
        target: what the network is to predict of them (N, ...).
    """

    latents: Tensor
    steps: Tensor
    target: Tensor


class _OneStep:
    """In the place of a pipeline's scheduler: has its loop come round once, and keeps what its network predicts.

    Args:
        scheduler: the pipeline's.
        steps: a time step for each sample (N,).
    """

    order, init_noise_sigma = 1, 1.0

    def __init__(self, scheduler: Any, steps: Tensor) -> None:
        self.config, self.timesteps, self.sigmas = scheduler.config, steps[None], torch.zeros(2)
        self.predicted: Tensor | None = None

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
    ) -> None:
        """Nothing: the steps are given."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing: there is one step."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The samples as they are."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """Keeps the prediction."""
        self.predicted = model_output
        return (sample,)


def encoded(imaginer: Imaginer, images: Tensor) -> Tensor:
    """Clean latents of images, as the pipeline's network takes them.

    Args:
        imaginer: has the pipeline.
        images: (B, 3, S, S) in [-1, 1], of the size that it draws.

    Returns:
        Latents (B, ...), float32 on the pipeline's device.

    Raises:
        InputError: the pipeline packs latents in a way of its own.
    """
    pipe, vae = imaginer.pipeline, imaginer.pipeline.vae
    config, device = vae.config, drawing_device(pipe)
    pack, deep = getattr(pipe, "_pack_latents", None), hasattr(config, "z_dim")  # of an autoencoder of videos
    if not (deep or hasattr(config, "scaling_factor")) or (pack and [*inspect.signature(pack).parameters] != PACKING):
        raise imaginer.settings.error("", f"{type(pipe).__name__} has latents of its own kind, {ELSE}")
    x = images.to(device, vae.dtype)
    with torch.no_grad():
        found = vae.encode(x.unsqueeze(2) if deep else x)
        z = (found.latent_dist.mean if hasattr(found, "latent_dist") else found.latent).float()
    if deep:
        mean, std = (
            torch.tensor(rows, device=device)[:, None, None, None] for rows in (config.latents_mean, config.latents_std)
        )
        z = (z - mean) / std
    else:
        z = (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
    return z if pack is None else pack(z, len(z), z.shape[1], *z.shape[-2:])


def noised(scheduler: Any, clean: Tensor, noise: Tensor, levels: Tensor) -> Noisy:
    """Noisy versions of clean latents, as the generator saw them in its training.

    Args:
        scheduler: the pipeline's, which says what its network predicts.
        clean: latents (N, ...).
        noise: of the same shape.
        levels: numbers of noise levels (N,), from 0 to LEVELS - 1.

    Returns:
        The noisy latents.
    """
    total, shape = scheduler.config.num_train_timesteps, (-1, *[1] * (clean.ndim - 1))
    kind = scheduler.config.get("prediction_type")
    if flow_matching(scheduler) or kind == "flow_prediction":
        share = ((levels + 1) / LEVELS).to(clean)
        sigma = share.reshape(shape)
        return Noisy((1 - sigma) * clean + sigma * noise, total * share, noise - clean)
    steps = (levels * (total // LEVELS) + 1).clamp(max=total - 1)
    alpha = scheduler.alphas_cumprod.to(clean)[steps].reshape(shape)
    signal, deviation = alpha.sqrt(), (1 - alpha).sqrt()
    targets = {"epsilon": noise, "v_prediction": signal * noise - deviation * clean, "sample": clean}
    return Noisy(signal * clean + deviation * noise, steps, targets[kind])


def predicted(imaginer: Imaginer, labels: Tensor, tokens: Tensor, noisy: Noisy) -> Tensor:
    """What the pipeline's network predicts of noisy latents under embeddings, with gradients to these.

    Args:
        imaginer: has the pipeline.
        labels: class labels (N,).
        tokens: class tokens (N, m).
        noisy: noisy latents (N, ...).

    Returns:
        Predictions (N, ...).
    """
    pipe, scheduler = imaginer.pipeline, imaginer.pipeline.scheduler
    call: dict[str, Any] = {
        "height": imaginer.size,
        "width": imaginer.size,
        "num_inference_steps": 1,
        # none, but where the network takes a scale as its input
        "guidance_scale": 1.0 if imaginer.core.config.get("guidance_embeds") else 0.0,
        "use_resolution_binning": False,
    } | imaginer.settings.call
    takes = inspect.signature(pipe.__call__).parameters
    call = {name: value for name, value in call.items() if name in takes}
    one = _OneStep(scheduler, noisy.steps)
    pipe.scheduler = one
    try:
        with imaginer.placeholder.replaced(labels, tokens):
            inspect.unwrap(type(pipe).__call__)(  # without the `no_grad` around it
                pipe,
                prompt=imaginer.placeholder.prompts(labels),
                latents=noisy.latents.to(imaginer.core.dtype),
                output_type="latent",
                **call,
            )
    except (TypeError, ValueError) as wrong:
        raise imaginer.settings.error(
            "",
            f"{type(pipe).__name__} takes no time step for each image ({str(wrong).strip().splitlines()[0]}), {ELSE}",
        ) from None
    finally:
        pipe.scheduler = scheduler
    assert one.predicted is not None  # noqa: S101 # nosec B101 (every pipeline has its scheduler step)
    return one.predicted


class Inverter:
    """Finds class tokens of images, each of its image and noise alone.

    Args:
        imaginer: has the pipeline and the prompts.
        settings: `dream.space.inversion`.
    """

    def __init__(self, imaginer: Imaginer, settings: InversionSettings) -> None:
        self.imaginer, self.settings = imaginer, settings
        self.fitting = settings.batch_size  # fewer, once more did not fit into memory
        for part in (imaginer.core, imaginer.pipeline.vae, *(one.module for one in imaginer.placeholder.encoders)):
            part.requires_grad_(False)

    def __call__(self, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fits the class tokens of images, from T(y) on, which they stay as long as: ||T(y)|| v with a direction v.

        Args:
            images: (B, 3, S, S) in [-1, 1], of the size that the pipeline draws.
            labels: their classes (B,).
            seeds: a noise seed of each.

        Returns:
            Directions v (B, m), of unit length, on the CPU, and the loss of each step (steps, B).

        Raises:
            FloatingPointError: the loss is no longer a number.
        """
        s, clean = self.settings, encoded(self.imaginer, images)
        start = self.imaginer.placeholder.anchors[labels]
        lengths = start.norm(dim=1, keepdim=True)
        # of Adam's steps, whose length is that of the learning rate: in units of each token's root mean square
        unit = lengths / start.shape[1] ** 0.5
        free = (start / unit).requires_grad_()
        optimizer = torch.optim.Adam([free], s.lr)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        losses = []
        for _ in range(s.steps):
            levels = torch.stack([torch.randint(LEVELS, (s.noises,), generator=one) for one in noise])
            drawn = torch.stack([torch.randn(s.noises, *clean.shape[1:], generator=one) for one in noise])
            optimizer.zero_grad()
            tokens = lengths * F.normalize(free, dim=1)
            gradient, loss = self._gradient(tokens.detach(), labels, clean, drawn, levels)
            losses.append(loss)
            if not torch.isfinite(losses[-1]).all():
                raise FloatingPointError(
                    f"space: the loss of an inversion is not finite; lower {s.key('lr')} ({s.lr:g}), or set "
                    "dream.synthesis.dtype to float32"
                )
            tokens.backward(gradient)
            optimizer.step()
        return F.normalize(free.detach(), dim=1), torch.stack(losses)

    def _gradient(
        self, tokens: Tensor, labels: Tensor, clean: Tensor, noise: Tensor, levels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient (B, m) of each sample's mean loss over its noises (B, n, ...), and these losses (B,).

        What does not fit into memory is taken in halves.
        """
        count, total, gradient = noise.shape[1], torch.zeros(len(labels)), torch.zeros_like(tokens)
        rows = torch.arange(len(labels)).repeat_interleave(count)
        noise, levels = noise.flatten(0, 1), levels.flatten()
        done = 0
        while done < len(rows):
            some = slice(done, done + self.fitting)
            of = rows[some]
            own = tokens[of].requires_grad_()
            try:
                loss = self._losses(labels[of], own, clean[of.to(clean.device)], noise[some], levels[some]) / count
                (found,) = torch.autograd.grad(loss.sum(), own)
            except (MemoryError, RuntimeError) as failed:
                self._halve(failed, len(of))
                continue
            gradient.index_add_(0, of, found)
            total.index_add_(0, of, loss.detach().cpu())
            done += len(of)
        return gradient, total

    def _losses(self, labels: Tensor, tokens: Tensor, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The diffusion loss (N,) of each of N noises."""
        noisy = noised(self.imaginer.pipeline.scheduler, clean, noise.to(clean), levels.to(clean.device))
        error = predicted(self.imaginer, labels, tokens, noisy).float() - noisy.target
        return error.square().flatten(1).mean(1)

    def _halve(self, failed: Exception, count: int) -> None:
        """Half as many of `count` noisy versions at once from now on, where memory was short; raises `failed` elsewhere."""
        if not out_of_memory(failed):
            raise failed
        self.imaginer.pipeline.maybe_free_model_hooks()  # its call did not come to it
        s = self.settings
        if count == 1:
            text = "a single noisy image does not fit into memory with its gradients; set dream.synthesis.offload, or lower the size"
            raise s.error("batch_size", text) from None
        self.fitting = count // 2
        warn(
            f"{s.where('batch_size')}: {count} do not fit into memory with their gradients; from now on {self.fitting} at most"
        )


# ------------------------------------------------------------------------------------------------------------ the stage


def make_inversion(
    source: Source,
    names: Sequence[str],
    train: ImageList,
    settings: SpaceSettings,
    synthesis: SynthesisSettings,
    cache_dir: str | Path,
    *,
    device: str = "auto",
) -> Artifact:
    """The inversion stage: `embeddings.safetensors` as of a space, with unit `embeddings` (N, m), `labels` and `rows`.

    The manifest has the mean loss of each step, and how many embeddings are nearest to their own class's anchor, in percent.

    Args:
        source: where the pipeline comes from.
        names: the class names in label order.
        train: the ID training images, without augmentation.
        settings: `dream.space`.
        synthesis: prompts, size and number format of the pipeline.
        cache_dir: folder of all artifacts.
        device: the config's word for the device.

    Returns:
        The artifact.

    Raises:
        InputError: the pipeline has latents or a call of its own kind, or an image does not fit into memory.
    """
    inputs = {
        "generator": source.identity,
        "class_names": list(names),
        "train": train.identity,
        "transform": train.transform.test_identity,
        "space": settings.model_dump(include={"per_class", "seed"}),
        "inversion": settings.inversion.model_dump(exclude={"batch_size"}),
        "synthesis": synthesis.model_dump(include={"prompt", "prompts", "size", "dtype", "call"}),
    }
    rows = first_per_class(train.labels, settings.per_class, settings.seed)

    def make(folder: Path) -> dict[str, Any]:
        parts = list(rows.split(SHARD))
        files = [folder / "parts" / f"{number:06d}.safetensors" for number in range(len(parts))]
        todo = [number for number, file in enumerate(files) if not file.exists()]
        if todo:
            inverter = Inverter(
                Imaginer(load_pipeline(source, synthesis, device), names, synthesis), settings.inversion
            )
            done = len(rows) - sum(len(parts[number]) for number in todo)
            with tqdm(total=len(rows), initial=done, desc="space: inverting images", unit="image") as bar:
                for number in todo:
                    write_tensors(files[number], **_inverted(inverter, train, parts[number], settings.seed, bar))
        found = [read_tensors(file, embeddings=2, losses=2, own=1) for file in files]
        z, losses, own = (torch.cat([part[name] for part in found]) for name in ("embeddings", "losses", "own"))
        write_tensors(folder / "embeddings.safetensors", embeddings=z, labels=train.labels[rows], rows=rows)
        return {"losses": losses.mean(0).tolist(), "nearest": round(100 * own.float().mean().item(), 2)}

    return build(cache_dir, "inversion", inputs, make, label=f"{settings.inversion.steps}steps")


def _inverted(inverter: Inverter, train: ImageList, rows: Tensor, seed: int, bar: tqdm) -> dict[str, Tensor]:
    """What is written of images `rows` of a list."""
    scaled, anchors = train.at_size(inverter.imaginer.size), inverter.imaginer.placeholder.anchors
    found, losses = [], []
    for some in rows.split(max(1, inverter.settings.batch_size // inverter.settings.noises)):
        x = unit_range(scaled.__getitems__(some.tolist())["data"], scaled.transform)
        z, loss = inverter(x, train.labels[some], [image_seed(seed, row) for row in some.tolist()])
        found.append(z)
        losses.append(loss.T)
        bar.update(len(some))
    z = torch.cat(found)
    own = (z @ F.normalize(anchors, dim=1).T).argmax(1) == train.labels[rows]
    return {"embeddings": z, "losses": torch.cat(losses), "own": own.long()}
