"""Trains a small latent diffusion pipeline in Stable Diffusion's format on the ID training images.

For users without a downloaded model, and for images that public models do not know. The rest of the chain only ever
loads what `save_pretrained` wrote here, as it would load any other pipeline of the family.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
from tqdm import tqdm, trange
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream import anchors as anchors_stage
from openood_dream import data, store
from openood_dream import space as space_stage
from openood_dream.anchors import Source
from openood_dream.config import Config, GeneratorTraining, settings
from openood_dream.networks import autocast, pick_device, pick_dtype
from openood_dream.prompts import Prompt, conditioning

KL_WEIGHT = 1e-4  # keeps the latents near a unit Gaussian without blurring the images
VAE_BATCH = 16
VAE_LR = 3e-3  # peak
EMA_DECAY = 0.99  # of the diffusion model's weights; a short training cannot afford a longer memory
DOWNSAMPLING = 4  # pixels per latent, each way
LATENT_CHANNELS = 8


def small_vae(image_size: int) -> AutoencoderKL:
    """An untrained autoencoder, images (B, 3, S, S) in [-1, 1] <-> latents (B, 8, S/4, S/4)."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=image_size,
        mid_block_add_attention=False,
    )


def small_unet(latent_size: int, text_dim: int) -> UNet2DConditionModel:
    """An untrained noise predictor for latents (B, 8, L, L) with cross-attention to text of width `text_dim`.

    One level, since small images have few latents: at equal time a narrow network that sees more samples learns more.
    """
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64,),
        down_block_types=("DownBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=text_dim,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def noise_schedule() -> DDPMScheduler:
    """Stable Diffusion's noise schedule, with the noise as prediction target."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def unit_range(batch: dict[str, Any], images: data.ImageList) -> torch.Tensor:
    """A batch's images (B, 3, S, S) in [-1, 1], whatever their normalisation."""
    return (batch["data"] * images.std + images.mean) * 2 - 1


def endless(loader: DataLoader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def train_vae(
    vae: AutoencoderKL, loader: DataLoader, training: GeneratorTraining, device: torch.device, dtype: torch.dtype
) -> float:
    """Trains the autoencoder (squared error and a light KL term) and sets its scaling factor; returns the last mean error."""
    vae.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), VAE_LR, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VAE_LR, total_steps=training.vae_steps, pct_start=0.1)
    batches, error = endless(loader), 0.0
    with trange(training.vae_steps, desc="generator: training the autoencoder", unit="step") as steps:
        for step in steps:
            x = unit_range(next(batches), loader.dataset).to(device, memory_format=torch.channels_last)
            with autocast(device, dtype):
                posterior = vae.encode(x).latent_dist
                reconstruction = vae.decode(posterior.sample()).sample
            squared = F.mse_loss(reconstruction.float(), x)
            loss = squared + KL_WEIGHT * posterior.kl().float().mean() / posterior.mean[0].numel()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0 or step == training.vae_steps - 1:
                error = squared.item()
                steps.set_postfix(error=f"{error:.4f}")
    return error


@torch.inference_mode()
def encode(vae: AutoencoderKL, loader: DataLoader, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (N, 8, L, L) of every image's latent posterior."""
    vae.eval()
    posteriors = [
        vae.encode(unit_range(batch, loader.dataset).to(device)).latent_dist
        for batch in tqdm(loader, desc="generator: latents", leave=False)
    ]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


def train_unet(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    prompts: list[Prompt],
    empty: Prompt,
    latents: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    anchors: torch.Tensor,
    embeddings: torch.Tensor,
    training: GeneratorTraining,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Trains noise predictor and text transformer; returns the mean loss of the last tenth of the steps.

    `latents` are means and deviations (N, 8, L, L), scaled; `embeddings` (N, m) the images' own unit embeddings. In
    place of its class token a sample has ||T(y)|| h(x) with probability `embedding_fraction`, so that moving the
    embedding moves the image; `empty_fraction` of the samples have the empty prompt (classifier-free guidance).
    """
    nets = nn.ModuleDict({"unet": unet, "text": text_encoder}).to(device).train()
    unet.to(memory_format=torch.channels_last)
    text_encoder.get_input_embeddings().weight.requires_grad_(False)  # the anchors must stay what they are
    parameters = [p for p in nets.parameters() if p.requires_grad]
    average = AveragedModel(nets, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(parameters, training.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=training.steps, pct_start=0.05)
    noise = noise_schedule()
    mean, std, labels = (tensor.to(device) for tensor in (*latents, labels))
    anchors, own = anchors.to(device), embeddings.to(device) * anchors.norm(dim=1)[labels.cpu()].unsqueeze(1).to(device)
    tail = []
    with trange(training.steps, desc="generator: training the diffusion model", unit="step") as steps:
        for step in steps:
            picked = torch.randint(len(labels), (training.batch_size,), device=device)
            y = labels[picked]
            z = mean[picked] + std[picked] * torch.randn_like(std[picked])
            target, t = torch.randn_like(z), torch.randint(noise.config.num_train_timesteps, (len(z),), device=device)
            moved = torch.rand(len(z), 1, device=device) < training.embedding_fraction / (1 - training.empty_fraction)
            tokens = torch.where(moved, own[picked], anchors[y])
            blank = torch.rand(len(z), device=device) < training.empty_fraction
            with autocast(device, dtype):
                context = conditioning(text_encoder, prompts, y, tokens)
                nothing = conditioning(text_encoder, [empty], torch.zeros_like(y[:1]), None)
                context = torch.where(blank.view(-1, 1, 1), nothing, context)
                guess = unet(
                    noise.add_noise(z, target, t).contiguous(memory_format=torch.channels_last), t, context
                ).sample
            loss = F.mse_loss(guess.float(), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(nets)
            if step >= int(0.9 * training.steps):
                tail.append(loss.detach())
            if step % 50 == 0:
                steps.set_postfix(loss=f"{loss.item():.3f}")
    nets.load_state_dict(average.module.state_dict())
    return torch.stack(tail).mean().item()


def run(config: Config) -> Source:
    """The generator stage: the pipeline that `dream.generator` names, trained first where it says `{train: small}`."""
    dream = settings(config, "dream")
    training = dream.generator
    if not isinstance(training, GeneratorTraining):
        return anchors_stage.given_source(config)
    space = space_stage.run(config)
    text = anchors_stage.text_source(config)
    inputs = {
        "training": training.model_dump(),
        "space": space.hash,
        "text": text.identity,
        "prompt": dream.synthesis.prompt,
    }

    def make(folder: Path) -> dict[str, Any]:
        device = pick_device(config.device)
        # on a CPU bfloat16 gains nothing for networks as small as these
        dtype = torch.float32 if device.type == "cpu" else pick_dtype(config.precision, device)
        anchors = anchors_stage.load(anchors_stage.run(config))
        torch.manual_seed(training.seed)
        tokenizer = text.load(CLIPTokenizer, subfolder="tokenizer")
        text_encoder = text.load(CLIPTextModel, subfolder="text_encoder")
        images = data.id_loader(config, "train").dataset
        in_order = data.loader(images, 256, shuffle=False)
        vae = small_vae(images.image_size)
        error = train_vae(vae, data.loader(images, VAE_BATCH, shuffle=True), training, device, dtype)
        mean, std = encode(vae, in_order, device)
        vae.register_to_config(scaling_factor=1 / mean.std().item())
        scale = vae.config.scaling_factor
        own = space_stage.embed(space_stage.load_encoder(config, space, anchors.shape[1]), in_order, device)
        unet = small_unet(images.image_size // DOWNSAMPLING, anchors.shape[1])
        template, names = dream.synthesis.prompt, data.class_names(config)
        prompts = [Prompt.of(tokenizer, template, name) for name in names]
        loss = train_unet(
            unet,
            text_encoder,
            prompts,
            Prompt.plain(tokenizer, ""),
            (mean * scale, std * scale),
            images.labels,
            anchors,
            own,
            training,
            device,
            dtype,
        )
        pipeline = StableDiffusionPipeline(
            vae=vae.float().cpu(),
            text_encoder=text_encoder.float().cpu(),
            tokenizer=tokenizer,
            unet=unet.float().cpu(),
            scheduler=DPMSolverMultistepScheduler.from_config(noise_schedule().config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
        return {"autoencoder_error": error, "diffusion_loss": loss}

    artifact = store.build(dream.cache_dir, "generator", inputs, make)
    return Source(str(artifact.path), None, {"generator": artifact.hash})
