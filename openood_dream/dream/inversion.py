"""Diffusion embeddings: the class token under which a pipeline denoises an image best, found by gradients (NCIS, Sec. 3.1).

The pipeline's own call encodes the prompts and asks its network, once a step, with gradients and a scheduler that hands it
noisy latents of the images; so no family of pipelines needs code of its own (Doorenbos et al., arXiv 2411.13619).
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from openood_dream.datasets.images import ImageList
from openood_dream.dream.autoencoder import encoded_by, of_videos
from openood_dream.dream.generator.training import unit_images
from openood_dream.dream.imaginer import Imaginer, flow_matching, image_seed, load_pipeline
from openood_dream.dream.inversion_settings import InversionSettings
from openood_dream.dream.placing import drawing_device
from openood_dream.dream.settings import SpaceSettings, SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.dream.space import first_per_class
from openood_dream.errors import InputError, out_of_memory, warn
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import read_tensors, write_tensors

LEVELS = 50  # noise levels that are drawn from, as many as NCIS's sampler has steps
PACKING = ["latents", "batch_size", "num_channels_latents", "height", "width"]  # how pipelines that pack latents do it
ELSE = "so that images cannot be inverted with it; expected dream.space.method: encoder"
CHECKED = 32  # images by which the fit is judged
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
        original_inference_steps: Any = None,
    ) -> None:
        """Nothing: the steps are given."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Nothing: there is one step."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The samples as they are."""
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Keeps the prediction."""
        self.predicted = model_output
        return sample, sample  # LCM's give the clean latents too


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
    pack, deep = getattr(pipe, "_pack_latents", None), of_videos(vae)
    if not (deep or hasattr(config, "scaling_factor")) or (pack and [*inspect.signature(pack).parameters] != PACKING):
        raise imaginer.settings.error("", f"{type(pipe).__name__} has latents of its own kind, {ELSE}")
    with torch.no_grad():
        z = encoded_by(vae, images.to(device, vae.dtype)).float()
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
        labels: class labels (B,).
        tokens: class tokens (B, m).
        noisy: as many noisy latents of each sample, one sample after the other (B * n, ...).

    Returns:
        Predictions (B * n, ...).
    """
    pipe, scheduler, repeats = imaginer.pipeline, imaginer.pipeline.scheduler, len(noisy.latents) // len(labels)
    if getattr(pipe, "unet", None) is None:  # others may repeat the masks of prompts in another order than the prompts
        labels, tokens, repeats = labels.repeat_interleave(repeats), tokens.repeat_interleave(repeats, dim=0), 1
    scaled = any(imaginer.core.config.get(key) for key in ("guidance_embeds", "time_cond_proj_dim"))
    call: dict[str, Any] = {
        "height": imaginer.size,
        "width": imaginer.size,
        "num_inference_steps": 1,
        # none, but where the network takes a scale as its input, as those do that guidance was distilled into
        "guidance_scale": 1.0 if scaled else 0.0,
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
                num_images_per_prompt=repeats,
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

    @torch.no_grad()
    def loss(self, images: Tensor, labels: Tensor, tokens: Tensor, seed: int) -> Tensor:
        """The mean diffusion loss of images (B,) under class tokens, over noises that no fit has seen.

        Args:
            images: as the call takes them.
            labels: their classes (B,).
            tokens: class tokens (B, m).
            seed: of the noises.
        """
        generator, found = torch.Generator().manual_seed(seed), []
        for i in range(len(labels)):
            one, clean, count = slice(i, i + 1), encoded(self.imaginer, images[i : i + 1]), self.settings.noises
            levels = torch.randint(LEVELS, (1, count), generator=generator)
            noise = torch.randn(1, count, *clean.shape[1:], generator=generator)
            each = [
                self._losses(labels[one], tokens[one], clean, noise[:, some], levels[:, some])
                for some in torch.arange(count).split(self.fitting)
            ]
            found.append(torch.cat(each, dim=1).mean().cpu())
        return torch.stack(found)

    def _gradient(
        self, tokens: Tensor, labels: Tensor, clean: Tensor, noise: Tensor, levels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient (B, m) of each sample's mean loss over its noises (B, n, ...), and these losses (B,).

        What does not fit into memory is taken in halves.
        """
        count, total, gradient = noise.shape[1], torch.zeros(len(labels)), torch.zeros_like(tokens)
        done = 0  # of all noisy versions, sample by sample
        while done < noise.shape[0] * count:
            first, begun = divmod(done, count)
            # whole samples, or as much of one as fits
            samples = slice(first, first + (1 if begun else max(1, self.fitting // count)))
            parts = slice(begun, min(count, begun + self.fitting))
            some = noise[samples, parts]
            own = tokens[samples].detach().requires_grad_()
            try:
                loss = self._losses(labels[samples], own, clean[samples], some, levels[samples, parts]).sum(1) / count
                (found,) = torch.autograd.grad(loss.sum(), own)
            except (MemoryError, RuntimeError) as failed:
                self._halve(failed, some.shape[0] * some.shape[1])
                continue
            gradient[samples] += found
            total[samples] += loss.detach().cpu()
            done += some.shape[0] * some.shape[1]
        return gradient, total

    def _losses(self, labels: Tensor, tokens: Tensor, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """The diffusion loss (B, n) of each of n noises (B, n, ...) of each sample."""
        noisy = noised(
            self.imaginer.pipeline.scheduler,
            clean.repeat_interleave(noise.shape[1], dim=0),
            noise.flatten(0, 1).to(clean),
            levels.flatten().to(clean.device),
        )
        error = predicted(self.imaginer, labels, tokens, noisy).float() - noisy.target
        return error.square().flatten(1).mean(1).reshape(levels.shape)

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

    The manifest has losses, of some images with noise that was not fitted to too, and the share nearest to their own anchor.

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
        "train": [train.identity, train.transform.test_identity],
        "space": settings.model_dump(include={"per_class", "seed"}),
        "inversion": settings.inversion.model_dump(exclude={"batch_size"}),
        "synthesis": synthesis.model_dump(include={"prompt", "prompts", "size", "dtype", "vae_tiling", "call"}),
    }
    rows = first_per_class(train.labels, settings.per_class, settings.seed)

    def make(folder: Path) -> dict[str, Any]:
        parts = rows.split(SHARD)
        files = [folder / "parts" / f"{i:06d}.safetensors" for i in range(len(parts))]
        todo = [i for i, file in enumerate(files) if not file.exists()]
        inverter = Inverter(Imaginer(load_pipeline(source, synthesis, device), names, synthesis), settings.inversion)
        scaled, done = train.at_size(inverter.imaginer.size), len(rows) - sum(len(parts[i]) for i in todo)
        with tqdm(total=len(rows), initial=done, desc="space: inverting images", unit="image") as bar:
            for i in todo:
                write_tensors(files[i], **_inverted(inverter, scaled, parts[i], settings.seed, bar))
        z, losses, own = _joined(files, parts)
        write_tensors(folder / "embeddings.safetensors", embeddings=z, labels=train.labels[rows], rows=rows)
        before, after = _checked(inverter, scaled, rows, z)
        shutil.rmtree(folder / "parts")
        about = {"losses": losses.mean(0).tolist(), "nearest": round(100 * own.float().mean().item(), 2)}
        return about | {
            "class_token_loss": before,
            "own_token_loss": after,
            "warnings": _doubts(before, after, settings),
        }

    return build(cache_dir, "inversion", inputs, make, label=f"{settings.inversion.steps}steps")


def _inverted(inverter: Inverter, train: ImageList, rows: Tensor, seed: int, bar: tqdm) -> dict[str, Tensor]:
    """What is written of images `rows` of a list, at the size that is drawn."""
    anchors = inverter.imaginer.placeholder.anchors
    found, losses = [], []
    for some in rows.split(max(1, inverter.settings.batch_size // inverter.settings.noises)):
        z, loss = inverter(
            unit_images(train, some), train.labels[some], [image_seed(seed, row) for row in some.tolist()]
        )
        found.append(z)
        losses.append(loss.T)
        bar.update(len(some))
    z = torch.cat(found)
    own = (z @ F.normalize(anchors, dim=1).T).argmax(1) == train.labels[rows]
    return {"embeddings": z, "losses": torch.cat(losses), "own": own.long()}


def _joined(files: Sequence[Path], parts: Sequence[Tensor]) -> list[Tensor]:
    """Embeddings, losses and the nearest anchor being the own, of all images; InputError where a file lacks some of its part."""
    found = []
    for file, rows in zip(files, parts, strict=True):
        part = read_tensors(file, embeddings=2, losses=2, own=1)
        if any(len(tensor) != len(rows) for tensor in part.values()):
            raise InputError(f"{file}: not {len(rows)} rows; delete it and run again")
        found.append(part)
    return [torch.cat([part[name] for part in found]) for name in ("embeddings", "losses", "own")]


def _checked(inverter: Inverter, train: ImageList, rows: Tensor, embeddings: Tensor) -> tuple[float, float]:
    """The mean loss of some of the images `rows` under their class's token and under their own."""
    some = torch.linspace(0, len(rows) - 1, min(CHECKED, len(rows))).round().long()
    x, labels = unit_images(train, rows[some]), train.labels[rows[some]]
    anchors = inverter.imaginer.placeholder.anchors[labels]
    own = anchors.norm(dim=1, keepdim=True) * embeddings[some]
    return tuple(inverter.loss(x, labels, tokens, 0).mean().item() for tokens in (anchors, own))  # type: ignore[return-value]


def _doubts(before: float, after: float, settings: SpaceSettings) -> list[str]:
    """What is doubtful about embeddings under which images have a loss of `after`, and `before` under their class's."""
    if after < before:
        return []
    key, lr = settings.inversion.key("lr"), settings.inversion.lr
    return [
        f"the class tokens that were fitted to images denoise them no better than the class's own (loss {after:.4g}, {before:.4g}),"
        f" so outliers around them mean nothing; lower {key} ({lr:g}), or raise dream.space.inversion.steps"
    ]
