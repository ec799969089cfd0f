"""Trains a small latent diffusion pipeline in Stable Diffusion's format on the ID training images.

For users without a downloaded model, and for images that public models do not know. The rest of the chain only ever
loads what `save_pretrained` wrote here, as it would load any other pipeline of the family. Started by several
processes (`accelerate launch`, `torchrun`), it trains on all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import nn
from torchvision.utils import make_grid, save_image
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.datasets.images import ImageList, loader
from openood_dream.device import enough_memory, pick_dtype
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.generator.models import Denoiser, noise_schedule, small_unet, small_vae
from openood_dream.dream.generator.training import MIRROR, Samples, Session, encode_images, train_denoiser, train_vae
from openood_dream.dream.prompts import Prompts, class_prompts
from openood_dream.dream.settings import GeneratorTraining, SpaceSettings, SynthesisSettings
from openood_dream.dream.source import Source, make_text_encoder, text_inputs
from openood_dream.dream.space import load_encoder, unit_embeddings
from openood_dream.parallel.processes import Processes, joined
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.files import replacing, settle

SAMPLES_PER_CLASS, SAMPLED_CLASSES = 8, 10  # of the grid of validation samples
BATCH = 256  # images that are encoded or embedded at once
# what changes nothing but when the training looks up from its work
WITHOUT_EFFECT = {"checkpoint_every", "samples_every"}


def check_size(settings: GeneratorTraining, image_size: int, synthesis: SynthesisSettings | None = None) -> None:
    """Checks the sizes of images, before anything is computed.

    Args:
        settings: of the generator that is to be trained.
        image_size: pixels a side of the classifier's images, which are the generator's unless it has a size of its own.
        synthesis: how images are to be drawn; None where none are.

    Raises:
        InputError: the levels cannot halve the image that often, or images are to be drawn at another size than the
            generator is trained with.
    """
    size = settings.size or image_size
    whole = 2 ** (len(settings.vae_channels) + len(settings.unet_channels) - 2)
    if size % whole:
        raise settings.error(
            "size",
            f"{size} pixels cannot be halved by all levels of vae_channels and unet_channels; expected a multiple of "
            f"{whole}",
        )
    if synthesis is not None and synthesis.size not in (size, None):
        raise synthesis.error(
            "size", f"{synthesis.size} pixels, and the generator is trained with {size}; set it to {size}, or null"
        )


def latent_size(settings: GeneratorTraining, size: int) -> int:
    """Latents a side.

    Args:
        settings: have the levels of the autoencoder.
        size: pixels a side of its images.

    Returns:
        The size, halved by every level after the first.
    """
    return size // 2 ** (len(settings.vae_channels) - 1)


def assemble(
    vae: AutoencoderKL, nets: Denoiser, tokenizer: CLIPTokenizer, settings: GeneratorTraining
) -> StableDiffusionPipeline:
    """Makes a pipeline of its parts.

    Args:
        vae: the autoencoder.
        nets: noise predictor and text encoder.
        tokenizer: the text encoder's tokenizer.
        settings: say what the noise predictor predicts.

    Returns:
        A pipeline that shares the weights of the parts.
    """
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=nets.text,
        tokenizer=tokenizer,
        unet=nets.unet,
        scheduler=DPMSolverMultistepScheduler.from_config(noise_schedule(settings.prediction).config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def untrained(
    names: Sequence[str], settings: GeneratorTraining, *, synthesis: SynthesisSettings, image_size: int
) -> StableDiffusionPipeline:
    """The pipeline that `make_generator` starts from, which takes as long to draw as a trained one. Writes nothing.

    Args:
        names: the class names.
        settings: its architecture.
        synthesis: has the prompt.
        image_size: pixels a side of the classifier's images.

    Returns:
        A pipeline of random weights on the CPU.
    """
    size = settings.size or image_size
    with tempfile.TemporaryDirectory() as folder:
        make_text_encoder(text_inputs(names, synthesis.all_prompts, settings), Path(folder))
        ((tokenizer, text),) = Source(folder, None, None).text_parts()
    none = torch.zeros(0, tokenizer.model_max_length, dtype=torch.long)
    nets = Denoiser(small_unet(settings, latent_size(settings, size)), text, Prompts(none, none.bool(), none))
    return assemble(small_vae(settings, size).eval(), nets.eval(), tokenizer, settings)


def write_samples(
    file: Path, pipeline: StableDiffusionPipeline, names: Sequence[str], synthesis: SynthesisSettings
) -> None:
    """Draws what the plain prompts of the first classes give, a class a row, always from the same noise.

    Args:
        file: the picture.
        pipeline: what draws.
        names: the class names.
        synthesis: prompt, steps and guidance.
    """
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for name, template in [*synthesis.templates(names).items()][:SAMPLED_CLASSES]:
        images = pipeline(
            [template.replace("{}", name)] * SAMPLES_PER_CLASS,
            generator=[torch.Generator().manual_seed(seed) for seed in range(SAMPLES_PER_CLASS)],
            num_inference_steps=synthesis.steps,
            guidance_scale=synthesis.guidance,
            output_type="pt",
        ).images
        rows.append(images.float().cpu())
    with replacing(file) as work:
        save_image(make_grid(torch.cat(rows), nrow=SAMPLES_PER_CLASS, padding=1), work)


# ------------------------------------------------------------------------------------------------------------ the stage


@dataclass(frozen=True)
class Training:
    """All that the training of a pipeline starts from.

    Args:
        settings: its own settings.
        synthesis: how samples are drawn; has the prompt.
        text: tokenizer and text encoder.
        anchors: T(y) (C, m).
        names: the class names.
        images: the ID training images, at the classifier's size.
        load_encoder: loads the encoder h of the space.
        flip: whether images are mirrored at random.
        workers: processes that decode images.
        precision: the config's word for the number format.
    """

    settings: GeneratorTraining
    synthesis: SynthesisSettings
    text: Source
    anchors: torch.Tensor
    names: Sequence[str]
    images: ImageList
    load_encoder: Callable[[], nn.Module]
    flip: bool
    workers: int
    precision: str

    @property
    def size(self) -> int:
        """Pixels a side of the generator's images."""
        return self.settings.size or self.images.transform.image_size

    def dtype(self, device: torch.device) -> torch.dtype:
        """Number format of the training."""
        own = self.settings.precision
        # on a CPU bfloat16 gains nothing for networks as small as the default ones
        slow = device.type == "cpu" and own == "auto"
        return torch.float32 if slow else pick_dtype(self.precision if own == "auto" else own, device)

    def run(self, processes: Processes, folder: Path) -> dict[str, Any]:
        """Trains autoencoder and denoiser and saves their pipeline.

        Args:
            processes: those that train; each must call it.
            folder: for the pipeline, and for the state until then.

        Returns:
            What the manifest says of it: the last errors, and the number of processes.
        """
        settings = self.settings
        session = Session(processes, self.dtype(processes.device), folder, settings.checkpoint_every)
        # the order in which random numbers are drawn, here and below, decides about the weights
        torch.manual_seed(settings.seed)
        tokenizer, text_encoder = self._text_parts()
        vae = small_vae(settings, self.size)
        if processes.index:
            torch.manual_seed(settings.seed + 1_000_003 * processes.index)
        images = self.images.at_size(self.size)
        error = self._train_vae(vae, images, session)
        samples = self._encode(vae, images, session)
        unet = small_unet(settings, latent_size(settings, self.size))
        prompts = class_prompts(tokenizer, self.names, self.synthesis)
        nets = Denoiser(unet, text_encoder, prompts)

        def look(done: int, nets: nn.Module) -> None:
            if settings.samples_every and done % settings.samples_every == 0:
                pipeline = assemble(vae, cast(Denoiser, nets), tokenizer, settings)
                write_samples(folder / f"samples-{done:06d}.png", pipeline, self.names, self.synthesis)

        loss = train_denoiser(nets, samples, self.anchors, settings, session, look)
        if processes.is_main:
            pipeline = assemble(vae.eval(), nets.eval(), tokenizer, settings)
            write_samples(folder / "samples.png", pipeline, self.names, self.synthesis)
            for part in (pipeline.unet, pipeline.vae):  # which older versions of safetensors write in this order alone
                part.to(memory_format=torch.contiguous_format)
            pipeline.to("cpu").save_pretrained(folder)
            settle(folder)  # before the states go that it could be made of again
            for file in folder.glob("*.state"):
                file.unlink()
        return {"autoencoder_error": error, "diffusion_loss": loss, "processes": processes.count}

    def _text_parts(self) -> tuple[CLIPTokenizer, CLIPTextModel]:
        ((tokenizer, text_encoder),) = self.text.text_parts()
        return tokenizer, text_encoder

    def _train_vae(self, vae: AutoencoderKL, images: ImageList, session: Session) -> float:
        batch_size = session.part_of(self.settings, "vae_batch_size")
        shuffled = loader(images, batch_size, shuffle=True, workers=self.workers)
        return train_vae(vae, shuffled, self.settings, session, flip=self.flip)

    def _encode(self, vae: AutoencoderKL, images: ImageList, session: Session) -> Samples:
        """The training images as the denoiser learns from them, both ways round where they are mirrored."""
        device = session.device
        in_order = loader(images, BATCH, shuffle=False, workers=self.workers)
        as_seen = loader(self.images, BATCH, shuffle=False, workers=self.workers)
        mean, std = encode_images(vae, in_order, session)
        vae.register_to_config(scaling_factor=1 / mean.std().item())
        scale = vae.config.scaling_factor
        encoder, labels = self.load_encoder(), images.labels
        own = unit_embeddings(encoder, as_seen, device)
        if self.flip:
            mirrored = encode_images(vae, in_order, session, mirrored=True)
            mean, std = torch.cat([mean, mirrored[0]]), torch.cat([std, mirrored[1]])
            own = torch.cat([own, unit_embeddings(nn.Sequential(MIRROR, encoder), as_seen, device)])
            labels = labels.repeat(2)
        return Samples(mean * scale, std * scale, labels, own)


def make_generator(
    space: Artifact,
    text: Source,
    anchors: Artifact,
    names: Sequence[str],
    images: ImageList,
    settings: GeneratorTraining,
    *,
    space_settings: SpaceSettings,
    synthesis: SynthesisSettings,
    cache_dir: str | Path,
    device: str = "auto",
    precision: str = "auto",
    flip: bool = True,
    workers: int = 0,
) -> Artifact:
    """The generator stage: a pipeline trained on the ID images, and `samples.png`, what its plain prompts give.

    Every process of a launch must call it.

    Args:
        space: the artifact of the latent space.
        text: tokenizer and text encoder that the training starts from.
        anchors: the artifact of the anchors.
        names: the class names in label order.
        images: the ID training images, at the classifier's size.
        settings: architecture and training.
        space_settings: the settings of the space, which say what its encoder is.
        synthesis: has the prompt, and says how samples are drawn.
        cache_dir: folder of all artifacts.
        device: the config's word for the device.
        precision: the config's word for the number format.
        flip: whether images may be mirrored.
        workers: processes that decode images.

    Returns:
        The artifact; its folder is a pipeline that diffusers loads.

    Raises:
        InputError: a size, the prompt or a batch size does not fit.
    """
    image_size = images.transform.image_size
    check_size(settings, image_size)
    table = load_anchors(anchors)
    encoder = partial(load_encoder, space, space_settings, table.shape[1], image_size)
    training = Training(
        settings, synthesis, text, table, names, images, encoder, flip=flip, workers=workers, precision=precision
    )
    inputs = {
        "training": settings.model_dump(exclude=WITHOUT_EFFECT),
        "space": space.hash,
        "text": text.identity,
        "prompt": synthesis.all_prompts,
    }
    return _build_together(training.run, inputs, settings, cache_dir, device)


def _build_together(
    run: Callable[[Processes, Path], dict[str, Any]],
    inputs: dict[str, Any],
    settings: GeneratorTraining,
    cache_dir: str | Path,
    device: str,
) -> Artifact:
    """The artifact that all processes of a launch make together by `run(processes, folder)`."""
    label = f"{settings.train}-{settings.steps}steps"
    with joined(device) as processes:
        # only the main process looks whether there is anything to train, and tells the others where
        def make(folder: Path) -> dict[str, Any]:
            processes.broadcast(folder)
            return run(processes, folder)

        if processes.is_main:
            with enough_memory(partial(settings.error, "batch_size"), "the images of a step (or vae_batch_size)"):
                artifact = build(cache_dir, "generator", inputs, make, label=label)
            if artifact.reused:
                processes.broadcast(None)
            return artifact
        shared: Path | None = processes.broadcast(None)
        if shared is not None:
            run(processes, shared)
    return build(cache_dir, "generator", inputs, make, label=label)  # waits for the main process to have saved it
