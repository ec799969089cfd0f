"""Trains a small latent diffusion pipeline in Stable Diffusion's format on the ID training images.

For users without a downloaded model, and for images that public models do not know. The rest of the chain only ever
loads what `save_pretrained` wrote here, as it would load any other pipeline of the family. Started by several
processes (`accelerate launch`), it trains on all of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision.transforms import RandomHorizontalFlip
from torchvision.utils import make_grid, save_image
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream import anchors as anchors_stage
from openood_dream import data, store
from openood_dream import space as space_stage
from openood_dream.anchors import Source
from openood_dream.config import Config, GeneratorTraining, InputError, SynthesisSettings, origin, settings
from openood_dream.networks import autocast, pick_device, pick_dtype
from openood_dream.prompts import Prompt, conditioning

KL_WEIGHT = 1e-4  # keeps the latents near a unit Gaussian without blurring the images
SAMPLES_PER_CLASS, SAMPLED_CLASSES = 8, 10  # of the grid of validation samples
MIRROR = RandomHorizontalFlip(1.0)
# what changes nothing but when the training looks up from its work
WITHOUT_EFFECT = {"checkpoint_every", "samples_every"}


def small_vae(training: GeneratorTraining, image_size: int) -> AutoencoderKL:
    """An untrained autoencoder, images (B, 3, S, S) in [-1, 1] <-> latents (B, C, L, L), S/L = 2^(levels - 1)."""
    levels = len(training.vae_channels)
    return AutoencoderKL(
        block_out_channels=tuple(training.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=training.latent_channels,
        norm_num_groups=8,
        sample_size=image_size,
        mid_block_add_attention=False,
    )


def small_unet(training: GeneratorTraining, latent_size: int) -> UNet2DConditionModel:
    """An untrained noise predictor for latents (B, C, L, L) with cross-attention to text of width `text_dim`.

    One level by default, since small images have few latents: at equal time a narrow network that sees more samples
    learns more. The finest level has no attention: it has the most pixels and the least to do with the text.
    """
    deeper = len(training.unet_channels) - 1
    pooled = {
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 1,
        "resnet_time_scale_shift": "scale_shift",
    }
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=training.latent_channels,
        out_channels=training.latent_channels,
        block_out_channels=tuple(training.unet_channels),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        layers_per_block=training.unet_layers,
        cross_attention_dim=training.text_dim,
        attention_head_dim=8,
        norm_num_groups=16,
        **(pooled if training.pooled_text else {}),
    )


def noise_schedule(prediction: str = "epsilon") -> DDPMScheduler:
    """Stable Diffusion's noise schedule; the noise, or v (Salimans & Ho 2022), as prediction target."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def snr_weights(noise: DDPMScheduler, t: torch.Tensor, cap: float) -> torch.Tensor:
    """Weights (B,) of the squared errors at steps `t` (B,): min-SNR (Hang et al. 2023, Eq. 5 for noise and v)."""
    alphas = noise.alphas_cumprod.to(t.device)[t]
    snr = alphas / (1 - alphas)
    return snr.clamp(max=cap) / (snr if noise.config.prediction_type == "epsilon" else snr + 1)


def unit_range(batch: dict[str, Any], images: data.ImageList) -> torch.Tensor:
    """A batch's images (B, 3, S, S) in [-1, 1], whatever their normalisation."""
    return (batch["data"] * images.std + images.mean) * 2 - 1


# ---------------------------------------------------------------------------------------------------- one training loop


@dataclass
class Session:
    """Where trainings run (`device`, number format `dtype`, the `processes`), and the `folder` for what survives a kill.

    Every process has its own random numbers, process 0 those of a training by one process alone.
    """

    accelerator: Accelerator
    device: torch.device
    dtype: torch.dtype
    folder: Path
    checkpoint_every: int

    def share(self, batch_size: int, key: str) -> int:
        """This process's part of a batch; InputError where the batch cannot be shared out."""
        processes = self.accelerator.num_processes
        if batch_size % processes:
            raise InputError(
                f"dream.generator.{key}: expected a multiple of {processes}, one part a process, got {batch_size}"
            )
        return batch_size // processes


class Batches:
    """Endless batches of a shuffled loader, which can go on where an earlier run of them stopped."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.rows = loader, iter(())
        self.start, self.taken = torch.get_rng_state(), 0

    def __next__(self) -> dict[str, Any]:
        batch = next(self.rows, None)
        if batch is None:
            self.start, self.taken = torch.get_rng_state(), 0
            self.rows = iter(self.loader)
            batch = next(self.rows)
        self.taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["start"])
        for _ in range(state["taken"]):
            next(self)


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int, warm_up: float) -> Any:
    """Warms up to `lr` for a share of the steps, then cosine to zero. A warm-up has two steps at least: torch's rule
    divides by zero for one."""
    share = max(warm_up, 2 / steps) if steps > 2 else warm_up
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=share)


def fit(
    name: str,
    nets: nn.Module,
    loss_of: Callable[[nn.Module], tuple[torch.Tensor, torch.Tensor]],
    session: Session,
    *,
    steps: int,
    lr: float,
    warm_up: float,
    weight_decay: float,
    ema: float | None = None,
    batches: Batches | None = None,
    after_step: Callable[[int, nn.Module], None] = lambda done, nets: None,
) -> float:
    """Trains `nets` (AdamW, one cycle, clipped gradients) and returns the mean shown loss of the last tenth of the steps.

    `loss_of(nets)` gives the loss to lower and the loss to show. With `ema` the moving average of the weights is what
    is left at the end. `after_step(done, nets)` gets that average, or the weights. The state is saved by rename every so
    often, and read first: a training that was killed goes on and, on a CPU, ends with the same weights.
    """
    device, main = session.device, session.accelerator.is_main_process
    nets.to(device, memory_format=torch.channels_last).train()
    trained = session.accelerator.prepare_model(nets, device_placement=False)  # the same, or sharing its gradients
    parameters = [p for p in nets.parameters() if p.requires_grad]
    average = None if ema is None else AveragedModel(nets, multi_avg_fn=get_ema_multi_avg_fn(ema))
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)
    schedule = one_cycle(optimizer, lr, steps, warm_up)
    parts = {"nets": nets, "average": average, "optimizer": optimizer, "schedule": schedule}
    parts = {key: part for key, part in parts.items() if part is not None}
    file = session.folder / f"{name.partition(' ')[0]}.state"
    done, tail = 0, []
    if file.exists():
        state = read_state(file, session)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        done, tail = state["done"], list(state["tail"].to(device))
        own = state["random"][session.accelerator.process_index]
        if batches is not None:
            batches.load_state_dict(own["batches"])
        set_random_state(own, device)
    with progress(session, total=steps, initial=done, desc=f"generator: training the {name}", unit="step") as bar:
        while done < steps:
            loss, shown = loss_of(trained)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(nets)
            if done >= int(0.9 * steps):
                tail.append(shown.detach())
            if done % 50 == 0:
                bar.set_postfix(loss=f"{shown.item():.4f}")
            done += 1
            bar.update()
            if done % session.checkpoint_every == 0 or done == steps:
                states = {key: part.state_dict() for key, part in parts.items()}
                write_state(
                    file, session, batches, done=done, tail=torch.stack(tail) if tail else torch.empty(0), **states
                )
            if main:
                after_step(done, nets if average is None else average.module)
    if average is not None:
        nets.load_state_dict(average.module.state_dict())
    return session.accelerator.gather(torch.stack(tail).mean().view(1)).mean().item()


def progress(session: Session, **what: Any) -> tqdm:
    """A bar in the first process; given no word on it, tqdm heeds --quiet."""
    return tqdm(**what) if session.accelerator.is_main_process else tqdm(disable=True, **what)


def write_state(file: Path, session: Session, batches: Batches | None, **state: Any) -> None:
    """Writes a training's state by rename, with the random numbers and place in the data of every process."""
    own: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if session.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(session.device)
    if batches is not None:
        own["batches"] = batches.state_dict()
    everyone = gather_object([own])
    if session.accelerator.is_main_process:
        store.write_checkpoint(file, {**state, "random": everyone})


def read_state(file: Path, session: Session) -> dict[str, Any]:
    """What `write_state` wrote; InputError for a damaged file or another number of processes."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports a damaged file through many exception types
        reason = type(error).__name__
        raise InputError(f"{file}: not a readable training state ({reason}); delete it to start anew") from None
    before, now = len(state["random"]), session.accelerator.num_processes
    if before != now:
        raise InputError(
            f"{file}: begun by {before} processes, this are {now}; start as many, or delete it to start anew"
        )
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


# -------------------------------------------------------------------------------------------------------- two trainings


class Autoencoding(nn.Module):
    """An autoencoder there and back: images (B, 3, S, S) -> reconstruction, and mean KL per latent number."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(x).latent_dist
        reconstruction = self.vae.decode(posterior.sample()).sample
        return reconstruction.float(), posterior.kl().float().mean() / posterior.mean[0].numel()


def train_vae(
    vae: AutoencoderKL, loader: DataLoader, training: GeneratorTraining, session: Session, *, flip: bool = False
) -> float:
    """Trains the autoencoder (squared error and a light KL term) on images, `flip`ped at random; returns its last error."""
    batches = Batches(loader)

    def loss_of(nets: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        x = unit_range(next(batches), loader.dataset)
        x = (data.random_flip(x) if flip else x).to(session.device, memory_format=torch.channels_last)
        with autocast(session.device, session.dtype):
            reconstruction, divergence = nets(x)
        error = F.mse_loss(reconstruction, x)
        return error + KL_WEIGHT * divergence, error

    return fit(
        "autoencoder",
        Autoencoding(vae),
        loss_of,
        session,
        steps=training.vae_steps,
        lr=training.vae_lr,
        warm_up=0.1,
        weight_decay=0.0,
        batches=batches,
    )


@torch.inference_mode()
def encode(
    vae: AutoencoderKL, loader: DataLoader, session: Session, *, mirrored: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (N, C, L, L) of the latent posterior of every image, or of every mirrored image."""
    vae.eval()
    posteriors = []
    for batch in tqdm(loader, desc="generator: latents", leave=False):
        x = unit_range(batch, loader.dataset)
        x = (MIRROR(x) if mirrored else x).to(session.device, memory_format=torch.channels_last)
        with autocast(session.device, session.dtype):
            posteriors.append(vae.encode(x).latent_dist)
    return torch.cat([p.mean.float() for p in posteriors]), torch.cat([p.std.float() for p in posteriors])


class Denoiser(nn.Module):
    """Noise predictor and text transformer in one: what is trained, averaged and shared out together."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel, prompts: list[Prompt], empty: Prompt) -> None:
        super().__init__()
        self.unet, self.text = unet, text
        self.prompts, self.empty = prompts, empty
        text.get_input_embeddings().weight.requires_grad_(False)  # the anchors must stay what they are

    def forward(
        self, noisy: torch.Tensor, t: torch.Tensor, y: torch.Tensor, tokens: torch.Tensor, blank: torch.Tensor
    ) -> torch.Tensor:
        context = conditioning(self.text, self.prompts, y, tokens)
        nothing = conditioning(self.text, [self.empty], torch.zeros_like(y[:1]), None)
        context = torch.where(blank.view(-1, 1, 1), nothing, context)
        return self.unet(noisy, t, context).sample.float()


def train_unet(
    nets: Denoiser,
    latents: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    anchors: torch.Tensor,
    embeddings: torch.Tensor,
    training: GeneratorTraining,
    session: Session,
    after_step: Callable[[int, nn.Module], None] = lambda done, nets: None,
) -> float:
    """Trains noise predictor and text transformer; returns the mean squared error of the last tenth of the steps.

    `latents` are means and deviations (N, C, L, L), scaled; `embeddings` (N, m) the images' own unit embeddings. In
    place of its class token a sample has ||T(y)|| h(x) with probability `embedding_fraction`, so that moving the
    embedding moves the image; `empty_fraction` of the samples have the empty prompt (classifier-free guidance).
    """
    device = session.device
    noise = noise_schedule(training.prediction)
    mean, std, labels = (tensor.to(device) for tensor in (*latents, labels))
    norms = anchors.norm(dim=1)[labels.cpu()].unsqueeze(1).to(device)
    anchors, embeddings = anchors.to(device), embeddings.to(device)
    batch_size = session.share(training.batch_size, "batch_size")

    def loss_of(nets: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        picked = torch.randint(len(labels), (batch_size,), device=device)
        y, h = labels[picked], embeddings[picked]
        z = mean[picked] + std[picked] * torch.randn_like(std[picked])
        drawn, t = torch.randn_like(z), torch.randint(noise.config.num_train_timesteps, (len(z),), device=device)
        moved = torch.rand(len(z), 1, device=device) < training.embedding_fraction / (1 - training.empty_fraction)
        if training.embedding_noise:
            h = F.normalize(h + training.embedding_noise * torch.randn_like(h), dim=1)
        tokens = torch.where(moved, h * norms[picked], anchors[y])
        blank = torch.rand(len(z), device=device) < training.empty_fraction
        target = drawn if training.prediction == "epsilon" else noise.get_velocity(z, drawn, t)
        noisy = noise.add_noise(z, drawn, t).contiguous(memory_format=torch.channels_last)
        with autocast(device, session.dtype):
            guess = nets(noisy, t, y, tokens, blank)
        error = F.mse_loss(guess, target)
        if training.min_snr is None:
            return error, error
        squares = (guess - target).square().flatten(1).mean(1)
        return (snr_weights(noise, t, training.min_snr) * squares).mean(), error

    return fit(
        "diffusion model",
        nets,
        loss_of,
        session,
        steps=training.steps,
        lr=training.lr,
        warm_up=0.05,
        weight_decay=0.01,
        ema=training.ema,
        after_step=after_step,
    )


# ------------------------------------------------------------------------------------------------------------ the stage


def assemble(
    vae: AutoencoderKL, nets: Denoiser, tokenizer: CLIPTokenizer, training: GeneratorTraining
) -> StableDiffusionPipeline:
    """The pipeline of an autoencoder and a denoiser."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=nets.text,
        tokenizer=tokenizer,
        unet=nets.unet,
        scheduler=DPMSolverMultistepScheduler.from_config(noise_schedule(training.prediction).config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_samples(
    file: Path, pipeline: StableDiffusionPipeline, names: list[str], synthesis: SynthesisSettings
) -> None:
    """A grid of what the plain prompts of the first classes give, a class a row, always from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for name in names[:SAMPLED_CLASSES]:
        images = pipeline(
            [synthesis.prompt.format(name)] * SAMPLES_PER_CLASS,
            generator=[torch.Generator().manual_seed(seed) for seed in range(SAMPLES_PER_CLASS)],
            num_inference_steps=synthesis.steps,
            guidance_scale=synthesis.guidance,
            output_type="pt",
        ).images
        rows.append(images.float().cpu())
    with store.replacing(file) as work:
        save_image(make_grid(torch.cat(rows), nrow=SAMPLES_PER_CLASS, padding=1), work)


def untrained(config: Config) -> StableDiffusionPipeline:
    """The pipeline that `train` would start from, which takes as long to draw as a trained one. Writes nothing."""
    training = settings(config, "dream").generator
    size = training.size or config.dataset.image_size
    with tempfile.TemporaryDirectory() as folder:
        anchors_stage.make_text_encoder(anchors_stage.text_inputs(config), Path(folder))
        ((tokenizer, text),) = Source(folder, None, None).text_parts()
    prompts, empty = [], Prompt.plain(tokenizer, "")
    nets = Denoiser(small_unet(training, latent_size(config, training, size)), text, prompts, empty)
    return assemble(small_vae(training, size).eval(), nets.eval(), tokenizer, training)


def training_images(config: Config, size: int) -> data.ImageList:
    """The ID training images at `size` pixels a side, cropped as the classifier's are."""
    dataset = config.dataset
    if size == dataset.image_size:
        return data.id_loader(config, "train").dataset
    scaled = Config(config)
    scaled.dataset = Config(dataset, image_size=size, pre_size=round(size * dataset.pre_size / dataset.image_size))
    return data.id_loader(scaled, "train").dataset


def latent_size(config: Config, training: GeneratorTraining, size: int) -> int:
    """Latents a side; InputError where the levels cannot halve the image that often."""
    halvings = len(training.vae_channels) - 1
    whole = 2 ** (halvings + len(training.unet_channels) - 1)
    if size % whole:
        where = origin(config, "dream.generator.size")
        raise InputError(
            f"{where}: dream.generator.size: {size} pixels cannot be halved by all levels of vae_channels and "
            f"unet_channels; expected a multiple of {whole}"
        )
    return size // 2**halvings


def check_size(config: Config) -> None:
    """Raises InputError where images are to be drawn at another size than the generator that is trained here knows."""
    training, size = settings(config, "dream").generator, settings(config, "dream").synthesis.size
    own = isinstance(training, GeneratorTraining) and (training.size or config.dataset.image_size)
    if own and size not in (own, None):
        raise InputError(
            f"{origin(config, 'dream.synthesis.size')}: dream.synthesis.size: {size} pixels, and the generator is trained "
            f"with {own}; set it to {own}, or null"
        )


def run(config: Config) -> Source:
    """The pipeline that `dream.generator` names, trained first where it says `{train: small}`."""
    if not isinstance(settings(config, "dream").generator, GeneratorTraining):
        return anchors_stage.given_source(config)
    artifact = train(config)
    return Source(str(artifact.path), None, {"generator": artifact.hash})


def train(config: Config) -> store.Artifact:
    """The generator stage: a pipeline trained on the ID images, and `samples.png`, what its plain prompts give.

    Every process of an `accelerate launch` must call it. Raises InputError where `dream.generator` is not
    `{train: small}`.
    """
    dream = settings(config, "dream")
    training = dream.generator
    if not isinstance(training, GeneratorTraining):
        where = origin(config, "dream.generator")
        raise InputError(f"{where}: dream.generator: expected {{train: small}} to train one, got {training!r}")
    size = training.size or config.dataset.image_size
    latent_size(config, training, size)
    device = pick_device(config.device)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # alone, the device is ours to pick and not accelerate's
    accelerator = Accelerator(cpu=several and device.type == "cpu", mixed_precision="no")
    space = space_stage.run(config)
    text = anchors_stage.text_source(config)
    inputs = {
        "training": training.model_dump(exclude=WITHOUT_EFFECT),
        "space": space.hash,
        "text": text.identity,
        "prompt": dream.synthesis.prompt,
    }

    def make(folder: Path) -> dict[str, Any]:
        if accelerator.is_main_process:
            said(accelerator, folder)
        return make_pipeline(config, training, accelerator, folder, space, text)

    if not accelerator.is_main_process and (folder := said(accelerator, None)) is not None:
        make(folder)
    artifact = store.build(dream.cache_dir, "generator", inputs, make)
    if accelerator.is_main_process and artifact.reused:
        said(accelerator, None)
    return artifact


def said(accelerator: Accelerator, folder: Path | None) -> Path | None:
    """In every process the folder of the first one: only that one looks whether there is anything to train."""
    message = [folder]
    if accelerator.num_processes > 1:
        broadcast_object_list(message)
    return message[0]


def make_pipeline(
    config: Config,
    training: GeneratorTraining,
    accelerator: Accelerator,
    folder: Path,
    space: store.Artifact,
    text: Source,
) -> dict[str, Any]:
    """Trains autoencoder and denoiser and saves their pipeline in `folder`; returns their last errors."""
    synthesis, names = settings(config, "dream").synthesis, data.class_names(config)
    device = accelerator.device if accelerator.num_processes > 1 else pick_device(config.device)
    precision = training.precision if training.precision != "auto" else config.precision
    # on a CPU bfloat16 gains nothing for networks as small as the default ones
    slow = device.type == "cpu" and training.precision == "auto"
    dtype = torch.float32 if slow else pick_dtype(precision, device)
    session = Session(accelerator, device, dtype, folder, training.checkpoint_every)
    anchors = anchors_stage.load(anchors_stage.run(config))
    flip = (config.preprocessor or {}).get("horizontal_flip", True)
    seen = data.id_loader(config, "train").dataset
    size = training.size or seen.image_size
    images = training_images(config, size)
    workers = config.dataset.num_workers or 0
    in_order = data.loader(images, 256, shuffle=False, workers=workers)

    torch.manual_seed(training.seed)
    ((tokenizer, text_encoder),) = text.text_parts()
    vae = small_vae(training, size)
    if accelerator.process_index:
        torch.manual_seed(training.seed + 1_000_003 * accelerator.process_index)
    batch_size = session.share(training.vae_batch_size, "vae_batch_size")
    shuffled = data.loader(images, batch_size, shuffle=True, workers=workers)
    error = train_vae(vae, shuffled, training, session, flip=flip)

    mean, std = encode(vae, in_order, session)
    vae.register_to_config(scaling_factor=1 / mean.std().item())
    scale = vae.config.scaling_factor
    encoder = space_stage.load_encoder(config, space, anchors.shape[1])
    as_seen = data.loader(seen, 256, shuffle=False, workers=workers)
    own, labels = space_stage.embed(encoder, as_seen, device), images.labels
    if flip:
        mirrored = encode(vae, in_order, session, mirrored=True)
        mean, std = torch.cat([mean, mirrored[0]]), torch.cat([std, mirrored[1]])
        own = torch.cat([own, space_stage.embed(nn.Sequential(MIRROR, encoder), as_seen, device)])
        labels = labels.repeat(2)

    template = synthesis.prompt
    prompts = [Prompt.of(tokenizer, template, name) for name in names]
    unet = small_unet(training, latent_size(config, training, size))
    nets = Denoiser(unet, text_encoder, prompts, Prompt.plain(tokenizer, ""))

    def look(done: int, nets: Denoiser) -> None:
        if training.samples_every and done % training.samples_every == 0:
            file = folder / f"samples-{done:06d}.png"
            write_samples(file, assemble(vae, nets, tokenizer, training), names, synthesis)

    loss = train_unet(nets, (mean * scale, std * scale), labels, anchors, own, training, session, look)
    if accelerator.is_main_process:
        pipeline = assemble(vae.eval(), nets.eval(), tokenizer, training)
        write_samples(folder / "samples.png", pipeline, names, synthesis)
        pipeline.to("cpu").save_pretrained(folder)
        for file in folder.glob("*.state"):
            file.unlink()
    return {"autoencoder_error": error, "diffusion_loss": loss, "processes": accelerator.num_processes}
