"""Embeddings to images: each sample's embedding takes the place of its class token in the prompt.

Works with any pipeline of a family that is known (families/), unmodified: it only gets prompt embeddings and noise of
our making.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from packaging.version import Version
from PIL import Image

from openood_dream.device import dtype_name, enough_memory, pick_device
from openood_dream.dream.families.base import find_family
from openood_dream.dream.prompts import Prompt, class_prompts, plain_prompts
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError, warn
from openood_dream.store.tensors import Rows

# diffusers 0.41, the newest for Python 3.10, knows the old name alone; later ones warn of it
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
OWN = "own"  # the scheduler that the pipeline was saved with, which few-step distillations need


def load_pipeline(source: Source, settings: SynthesisSettings, device: str = "auto") -> DiffusionPipeline:
    """Loads a pipeline to draw with.

    Args:
        source: where it comes from.
        settings: number format, scheduler, slicing and compilation.
        device: the config's word for the device: auto, cpu, cuda or mps.

    Returns:
        The pipeline on the device, with the scheduler of the settings.

    Raises:
        InputError: it cannot be had, or is of no known family.
    """
    place, dtype = pick_device(device), settings.dtype
    if dtype == "auto":
        dtype = "float16" if place.type in ("cuda", "mps") else "float32"
    family = find_family(source.index)
    pipeline = source.load(family.loader, **family.options, **{DTYPE: getattr(torch, dtype)})
    if find_family(pipeline.config) is not family:
        raise InputError(
            f"dream.generator: {type(pipeline).__name__} leaves out some of {', '.join(family.text_encoders)} of "
            f"{source.path!r}; expected a loader of the family that has them all"
        )
    if settings.scheduler != OWN:
        name, options = SCHEDULERS[settings.scheduler]
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    if settings.slicing:
        pipeline.enable_attention_slicing()
    if settings.slicing or place.type == "cuda":  # a decoder takes much memory, and one large image fills a GPU
        pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(place)
    if place.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    if settings.compile:
        pipeline.unet.compile()
    return pipeline


def _image_to_image(pipeline: DiffusionPipeline, settings: SynthesisSettings) -> DiffusionPipeline:
    """The pipeline of the same parts that starts from images; InputError where diffusers has none."""
    try:
        found = AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError:
        raise settings.error(
            "init", f"diffusers has no image-to-image pipeline like {type(pipeline).__name__}; expected noise, got 'id'"
        ) from None
    found.set_progress_bar_config(disable=True)
    return found


class Imaginer:
    """A pipeline and the prompts of every class, ready to draw images of embeddings.

    Args:
        pipeline: a loaded pipeline of a known family.
        names: the class names in label order.
        settings: prompts, steps, guidance and sizes.

    Raises:
        InputError: a prompt is too long, or the pipeline is of no known family.
    """

    def __init__(self, pipeline: DiffusionPipeline, names: Sequence[str], settings: SynthesisSettings) -> None:
        self.pipeline, self.names, self.settings = pipeline, names, settings
        self.family = find_family(pipeline.config)(pipeline)
        tokenizers = [tokenizer for tokenizer, _ in self.family.texts]
        words = [settings.prompt.format(name) for name in names]
        self.prompts = [class_prompts(tokenizer, names, settings) for tokenizer in tokenizers]
        self.words = [plain_prompts(tokenizer, words, settings) for tokenizer in tokenizers]
        # distilled pipelines take the guidance scale as an input, and have no unconditional half
        self.guided = settings.guidance > 1 and pipeline.unet.config.time_cond_proj_dim is None
        self.negative = self._negative() if self.guided else {}
        self.from_images = _image_to_image(pipeline, settings) if settings.init == "id" else None

    @torch.inference_mode()
    def _negative(self) -> dict[str, torch.Tensor]:
        """The encoding (1, ...) of the negative prompt, which is the same for every image of a run."""
        text = self.settings.negative_prompt
        prompts: list[list[Prompt]] = [
            plain_prompts(tokenizer, [text], self.settings, "negative_prompt") for tokenizer, _ in self.family.texts
        ]
        encoded = self.family.encode(prompts, torch.zeros(1, dtype=torch.long), None)
        if not text and self.pipeline.config.get("force_zeros_for_empty_prompt"):
            encoded = {name: torch.zeros_like(tensor) for name, tensor in encoded.items()}
        return {f"negative_{name}": tensor for name, tensor in encoded.items()}

    @property
    def width(self) -> int:
        """The numbers m of a class token's embedding, over all text encoders."""
        return sum(self.family.widths)

    @property
    def size(self) -> int:
        """Pixels a side that are generated."""
        return self.settings.size or self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    @torch.inference_mode()
    def _draw(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
        seeds: Sequence[int],
        output_type: str,
        starts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Images or latents, as the pipeline calls them in `output_type`, float32 on the device.

        FloatingPointError where a number of them is not finite.
        """
        drawn = self._call(labels, tokens, seeds, output_type, starts)
        if torch.isfinite(drawn).all():
            return drawn
        pipe, settings = self.pipeline, self.settings
        dtype = dtype_name(pipe.unet.dtype)
        if output_type == "pt" and dtype == "float16":
            latents = self._call(labels, tokens, seeds, "latent", starts)
            drawn = self._decoded(latents)
            if torch.isfinite(drawn).all():
                warn(
                    f"{settings.where('dtype')}: the decoder of {type(pipe).__name__} overflows in float16; its images are "
                    "decoded again in float32, which takes longer: bfloat16 or float32 does not overflow"
                )
                return drawn
        remedy = "set it to float32" if dtype != "float32" else "check its weights"
        raise FloatingPointError(
            f"{settings.where('dtype')}: {type(pipe).__name__} draws numbers that are not finite in {dtype}, with "
            f"{settings.steps} steps of {settings.scheduler} (dream.synthesis.steps, scheduler); {remedy}, or change these"
        )

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of latents (B, c, h, w), decoded in float32."""
        vae = self.pipeline.vae
        dtype, config = vae.dtype, vae.config
        vae.to(torch.float32)
        try:
            shifted = latents / config.scaling_factor + (config.get("shift_factor") or 0)
            return (vae.decode(shifted).sample / 2 + 0.5).clamp(0, 1)
        finally:
            vae.to(dtype)

    def _call(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
        seeds: Sequence[int],
        output_type: str,
        starts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the pipeline gives, float32 on the device."""
        pipe, settings, size = self.pipeline, self.settings, self.size
        # noise is drawn on the CPU, image by image, so that it is the same on every device and in every batch; some
        # schedulers draw more of it, from the same generators
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        text = self.family.encode(self.words if tokens is None else self.prompts, labels, tokens)
        if starts is None:
            sides = [size // pipe.vae_scale_factor] * 2
            noise = [torch.randn(pipe.unet.config.in_channels, *sides, generator=generator) for generator in generators]
            begin = {
                "latents": torch.stack(noise).to(pipe.device, text["prompt_embeds"].dtype),
                "height": size,
                "width": size,
            }
        else:
            begin = {"image": (starts + 1) / 2, "strength": settings.strength}
        with enough_memory(partial(settings.error, "batch_size"), f"{len(labels)} images of {size} pixels"):
            return (self.from_images if starts is not None and self.from_images else pipe)(
                **text,
                **{name: tensor.expand(len(labels), *tensor.shape[1:]) for name, tensor in self.negative.items()},
                **begin,
                generator=generators,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                output_type=output_type,
            ).images.float()

    def latents(
        self, labels: torch.Tensor, tokens: torch.Tensor, seeds: Sequence[int], starts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draws what the images of `__call__` are decoded from.

        Args:
            labels: class labels (B,).
            tokens: class tokens (B, m).
            seeds: a noise seed for each of the B.
            starts: as `__call__` takes them.

        Returns:
            Latents (B, c, h, w), float32 on the CPU.
        """
        return self._draw(labels, tokens, seeds, "latent", starts).cpu()

    def __call__(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
        seeds: Sequence[int],
        residuals: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draws images. Each depends on its label, token, seed, residual and start, not on its batch.

        Args:
            labels: class labels (B,).
            tokens: class tokens (B, m); None draws the plain prompts, class names in full.
            seeds: a noise seed for each of the B.
            residuals: what is added to the images that are generated (B, 3, size, size), from -1 to 1; None: nothing.
            starts: images (B, 3, size, size) in [-1, 1] that drawing starts from, noised to `strength`, where the settings
                have `init: id`; None starts from noise.

        Returns:
            Images (B, 3, S, S) as uint8 on the CPU, S being `save_size`.

        Raises:
            InputError: the batch does not fit into memory.
            FloatingPointError: numbers that are not finite, or images of one colour alone.
        """
        images = self._draw(labels, tokens, seeds, "pt", starts)
        if residuals is not None:
            images = images + residuals.to(images)
        size, save = images.shape[-1], self.settings.save_size or images.shape[-1]
        if save != size:
            images = F.interpolate(
                images, size=(save, save), mode="bilinear", antialias=save < size, align_corners=False
            )
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        flat = pixels.flatten(1)
        if (flat == flat[:, :1]).all():
            raise FloatingPointError(
                f"{self.settings.where()}: {type(self.pipeline).__name__} draws images of one colour ({int(flat[0, 0])} of 255) "
                f"with {self.settings.steps} steps of {self.settings.scheduler}; change steps, scheduler or guidance, or check "
                "the weights"
            )
        return pixels


def check_anchors(imaginer: Imaginer, anchors: torch.Tensor | Rows) -> None:
    """Checks that embeddings are as wide as the text encoders' tables.

    Args:
        imaginer: what is to draw them.
        anchors: embeddings (N, m).

    Raises:
        InputError: m is another number.
    """
    if anchors.shape[1] != imaginer.width:
        raise InputError(
            f"dream.generator: takes token embeddings of {imaginer.width} numbers, the anchors have {anchors.shape[1]}"
        )


def image_seed(seed: int, number: int) -> int:
    """The noise seed of an image.

    Args:
        seed: the seed of the set.
        number: the image's number in it.

    Returns:
        48 bits of a hash of both.
    """
    return int.from_bytes(sha256(f"{seed}/{number}".encode()).digest()[:6], "big")


def png(image: np.ndarray) -> bytes:
    """An image (S, S, 3) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
