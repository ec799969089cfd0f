"""Embeddings to images: each sample's embedding takes the place of its class token in the prompt.

Works with any text-to-image pipeline of diffusers, unmodified (placeholder.py).
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence
from contextlib import nullcontext
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from packaging.version import Version
from PIL import Image

from openood_dream.device import dtype_name, pick_device
from openood_dream.dream.autoencoder import rebuilt
from openood_dream.dream.guide_settings import GuideSettings
from openood_dream.dream.placeholder import Placeholder, text_pairs
from openood_dream.dream.placing import drawing_device, drawing_dtype, place_pipeline
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError, check_name, out_of_memory, reason, show, warn
from openood_dream.store.tensors import Rows

if TYPE_CHECKING:
    from openood_dream.dream.guided import Guide

# diffusers 0.41, the newest for Python 3.10, knows the old name alone; later ones warn of it
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# arguments of a pipeline's call that the settings decide about
OURS = {
    "prompt",
    "image",
    "strength",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "generator",
    "latents",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "output_type",
    "return_dict",
    "negative_prompt",
    "num_images_per_prompt",
    "kwargs",
}
# parts and habits of pipelines that we have no use for: a safety checker blackens images that it dislikes, and outliers are
# what we are after
LEFT_OUT = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None, "image_encoder": None}
LEFT_OUT |= {"add_watermarker": False}
OWN = "own"  # the scheduler that the pipeline was saved with, which few-step distillations need


def load_pipeline(source: Source, settings: SynthesisSettings, device: str = "auto") -> DiffusionPipeline:
    """Loads a pipeline to draw with.

    Args:
        source: where it comes from.
        settings: number format, scheduler, offload, tiles and compilation.
        device: the config's word for the device: auto, cpu, cuda or mps.

    Returns:
        The pipeline on the device, with the scheduler of the settings.

    Raises:
        InputError: it cannot be had, or draws no images of text alone.
    """
    place = pick_device(device)
    takes = inspect.signature(getattr(diffusers, source.index["_class_name"]).__init__).parameters
    options: dict[str, Any] = {name: value for name, value in LEFT_OUT.items() if name in takes}
    options[DTYPE] = drawing_dtype(settings.dtype, place)
    pipeline = source.pipeline(**options)
    if flow_matching(pipeline.scheduler):
        if settings.scheduler != OWN and "scheduler" in settings.model_fields_set:
            raise settings.error(
                "scheduler", f"{type(pipeline).__name__} matches flows; expected own, got {settings.scheduler!r}"
            )
    elif settings.scheduler != OWN:
        name, options = SCHEDULERS[settings.scheduler]
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    pipeline.set_progress_bar_config(disable=True)
    place_pipeline(pipeline, settings, place, drawn_size(pipeline, settings))
    return pipeline


def drawn_size(pipeline: DiffusionPipeline, settings: SynthesisSettings) -> int:
    """Pixels a side that are generated.

    Args:
        pipeline: the pipeline, which may know a size of its own.
        settings: the section that has `size`.

    Raises:
        InputError: neither says it.
    """
    core = getattr(pipeline, "unet", None) or pipeline.transformer
    known = getattr(pipeline, "default_sample_size", None) or core.config.get("sample_size")
    if settings.size is None and not isinstance(known, int):
        raise settings.error("size", f"{type(pipeline).__name__} does not say its own; expected a number of pixels")
    return settings.size or known * pipeline.vae_scale_factor


def check_call(pipeline: DiffusionPipeline, settings: SynthesisSettings) -> None:
    """Raises InputError where `dream.synthesis.call` has what the pipeline's call does not take, or what we decide.

    Args:
        pipeline: the pipeline.
        settings: the section that has `call`.
    """
    takes = {*inspect.signature(pipeline.__call__).parameters} - OURS
    for name in settings.call:
        check_name(settings.where("call"), name, sorted(takes))


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


def flow_matching(scheduler: Any) -> bool:
    """Whether a pipeline's scheduler is one of flow matching, which others cannot stand in for."""
    return "FlowMatch" in type(scheduler).__name__


def check_guided(pipeline: DiffusionPipeline, settings: GuideSettings) -> None:
    """Raises InputError where a pipeline cannot be guided.

    Args:
        pipeline: the pipeline.
        settings: the guide.
    """
    name = type(pipeline).__name__
    if "callback_on_step_end" not in inspect.signature(pipeline.__call__).parameters:
        raise settings.error(
            "image", f"{name} tells nobody of its steps, so it cannot be guided; set both weights to 0"
        )
    if hasattr(pipeline, "_pack_latents"):
        raise settings.error("image", f"{name} packs its latents, so it cannot be guided; set both weights to 0")


class Imaginer:
    """A pipeline and the prompts of every class, ready to draw images of embeddings.

    Args:
        pipeline: a loaded text-to-image pipeline.
        names: the class names in label order.
        settings: prompts, steps, guidance and sizes.

    Raises:
        InputError: a prompt is too long, or the pipeline's tokenizers do not know a name.
    """

    def __init__(self, pipeline: DiffusionPipeline, names: Sequence[str], settings: SynthesisSettings) -> None:
        self.pipeline, self.names, self.settings = pipeline, names, settings
        self.fitting: int | None = None  # the most images of a batch, once more did not fit into memory
        try:
            self.placeholder = Placeholder(text_pairs(pipeline), settings.templates(names))
        except ValueError as error:
            raise error if isinstance(error, InputError) else settings.error("prompt", str(error)) from None
        self.core = getattr(pipeline, "unet", None) or pipeline.transformer
        check_call(pipeline, settings)
        if settings.guide.active:
            check_guided(pipeline, settings.guide)
        self._check_negative()
        self.from_images = _image_to_image(pipeline, settings) if settings.init == "id" else None

    @property
    def width(self) -> int:
        """The numbers m of a class token's embedding, over all text encoders."""
        return sum(self.placeholder.widths)

    def _check_negative(self) -> None:
        """Raises InputError where the pipeline has no place for the negative prompt, or it is too long for its encoders."""
        settings, text = self.settings, self.settings.negative_prompt
        if not text:
            return
        if "negative_prompt" not in inspect.signature(self.pipeline.__call__).parameters:
            name = type(self.pipeline).__name__
            raise settings.error("negative_prompt", f"{name} takes none; expected no text, got {show(text)}")
        counts = [len(one.tagger.write(text, add_special_tokens=False).input_ids) for one in self.placeholder.encoders]
        rooms = [one.room for one in self.placeholder.encoders]
        if all(room is not None and count > room for count, room in zip(counts, rooms, strict=True)):
            raise settings.error(
                "negative_prompt", f"{show(text)} has {max(counts)} tokens, the generator takes {rooms[0]}; shorten it"
            )

    @property
    def size(self) -> int:
        """Pixels a side that are generated."""
        return drawn_size(self.pipeline, self.settings)

    @torch.inference_mode()
    def _draw(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
        seeds: Sequence[int],
        output_type: str,
        starts: torch.Tensor | None = None,
        guide: Guide | None = None,
    ) -> torch.Tensor:
        """Images or latents, as the pipeline calls them in `output_type`, float32 on the device.

        A batch that does not fit into memory is drawn in halves, and so are all that follow it.
        FloatingPointError where a number of them is not finite.
        """
        parts: list[torch.Tensor] = []
        done = 0
        while done < len(labels):
            some = slice(done, done + (self.fitting or len(labels)))
            own = [None if rows is None else rows[some] for rows in (tokens, starts)]
            try:
                parts.append(self._call(labels[some], own[0], seeds[some], output_type, own[1], guide))
                done = some.stop
            except (MemoryError, RuntimeError) as failed:
                self._halve(len(labels[some]), failed)
        drawn = torch.cat(parts)
        if torch.isfinite(drawn).all():
            return drawn
        settings, dtype = self.settings, dtype_name(self.core.dtype)
        remedy = "set it to float32" if dtype != "float32" else "check its weights"
        raise FloatingPointError(
            f"{settings.where('dtype')}: {type(self.pipeline).__name__} draws numbers that are not finite in {dtype}, with "
            f"{settings.steps} steps of {settings.scheduler} (dream.synthesis.steps, scheduler); {remedy}, or change these"
        )

    def _halve(self, count: int, failed: Exception) -> None:
        """Batches are half as large from now on, after `count` images `failed`; raises it where that is no help.

        Args:
            count: images of the batch.
            failed: what was raised.

        Raises:
            InputError: a single image does not fit into memory.
        """
        if not out_of_memory(failed):
            raise failed
        self.pipeline.maybe_free_model_hooks()  # its call did not come to it
        on_gpu = isinstance(failed, torch.OutOfMemoryError)
        memory = f"the memory of {'the GPU' if on_gpu else 'this machine'}"
        if count == 1:
            remedy = "set dream.synthesis.offload to model or sequential, or lower the size" if on_gpu else "lower it"
            text = f"an image of {self.size} pixels does not fit into {memory}; {remedy}"
            raise self.settings.error("size", text) from None
        self.fitting = (count + 1) // 2
        warn(
            f"{self.settings.where('batch_size')}: {count} images of {self.size} pixels do not fit into {memory}; from now on "
            f"{self.fitting} at most are drawn at once, which changes no image"
        )

    def _call(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
        seeds: Sequence[int],
        output_type: str,
        starts: torch.Tensor | None = None,
        guide: Guide | None = None,
    ) -> torch.Tensor:
        """What the pipeline gives, float32 on the device."""
        pipe, settings, size = self.pipeline, self.settings, self.size
        drawer = self.from_images if starts is not None and self.from_images else pipe
        call: dict[str, Any] = {
            "height": size,
            "width": size,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
        }
        call |= {"use_resolution_binning": False} | settings.call  # sizes are as asked for
        takes = inspect.signature(drawer.__call__).parameters
        call = {name: value for name, value in call.items() if name in takes}
        call["prompt"] = self.placeholder.prompts(labels)
        if settings.negative_prompt:
            call["negative_prompt"] = [settings.negative_prompt] * len(labels)
        # noise is drawn on the CPU, image by image, so that it is the same on every device and in every batch
        call["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        if starts is not None:
            call |= {"image": (starts + 1) / 2, "strength": settings.strength}
        elif getattr(pipe, "unet", None) is not None:  # in float32, whatever the pipeline computes in
            shape = (self.core.config.in_channels, *[size // pipe.vae_scale_factor] * 2)
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in call["generator"]])
            call["latents"] = noise.to(drawing_device(pipe), self.core.dtype)
        steering = nullcontext(dict[str, Any]()) if guide is None else guide.steering(drawer)
        try:
            with self.placeholder.replaced(labels, tokens), steering as guided:
                return drawer(**call, **guided, output_type=output_type).images.float()
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if not settings.call or isinstance(error, InputError):
                raise
            text = f"{type(pipe).__name__} does not draw with {', '.join(settings.call)} ({reason(error)}); change it, or leave it out"
            raise settings.error("call", text) from None

    def latents(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor,
        seeds: Sequence[int],
        starts: torch.Tensor | None = None,
        guide: Guide | None = None,
    ) -> torch.Tensor:
        """Draws what the images of `__call__` are decoded from.

        Args:
            labels: class labels (B,).
            tokens: class tokens (B, m).
            seeds: a noise seed for each of the B.
            starts: as `__call__` takes them.
            guide: as `__call__` takes it.

        Returns:
            Latents (B, c, h, w), float32 on the CPU.
        """
        return self._draw(labels, tokens, seeds, "latent", starts, guide).cpu()

    def __call__(
        self,
        labels: torch.Tensor,
        tokens: torch.Tensor | None,
        seeds: Sequence[int],
        residuals: torch.Tensor | None = None,
        starts: torch.Tensor | None = None,
        guide: Guide | None = None,
    ) -> torch.Tensor:
        """Draws images. Each depends on its label, token, seed, residual, start and guide, not on its batch.

        Args:
            labels: class labels (B,).
            tokens: class tokens (B, m); None draws the plain prompts, class names in full.
            seeds: a noise seed for each of the B.
            residuals: what is added to the images that are generated (B, 3, size, size), from -1 to 1; None: nothing.
            starts: images (B, 3, size, size) in [-1, 1] that drawing starts from, noised to `strength`, where the settings
                have `init: id`; None starts from noise.
            guide: moves the latents away from ID; None: nothing does.

        Returns:
            Images (B, 3, S, S) as uint8 on the CPU, S being `save_size`.

        Raises:
            InputError: a single image does not fit into memory.
            FloatingPointError: numbers that are not finite, or images of one colour alone.
        """
        pixels = self._finished(self._draw(labels, tokens, seeds, "pt", starts, guide), residuals)
        flat = pixels.flatten(1)
        if (flat == flat[:, :1]).all():
            raise FloatingPointError(
                f"{self.settings.where()}: {type(self.pipeline).__name__} draws images of one colour ({int(flat[0, 0])} of 255) "
                f"with {self.settings.steps} steps of {self.settings.scheduler}; change steps, scheduler or guidance, or check "
                "the weights"
            )
        return pixels

    def rebuilt(self, images: torch.Tensor, residuals: torch.Tensor | None = None) -> torch.Tensor:
        """What the autoencoder makes of images, as the call gives those that it draws.

        Args:
            images: (B, 3, size, size) in [-1, 1].
            residuals: as the call takes them.

        Returns:
            Images (B, 3, S, S) as uint8 on the CPU, S being `save_size`.
        """
        return self._finished((rebuilt(self.pipeline, images) + 1) / 2, residuals)

    def _finished(self, images: torch.Tensor, residuals: torch.Tensor | None) -> torch.Tensor:
        """Images (B, 3, size, size) in [0, 1] with their residuals, at the size that they are saved with, as uint8 on the CPU."""
        if residuals is not None:
            images = images + residuals.to(images)
        size, save = images.shape[-1], self.settings.save_size or images.shape[-1]
        if save != size:
            images = F.interpolate(
                images, size=(save, save), mode="bilinear", antialias=save < size, align_corners=False
            )
        return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


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
