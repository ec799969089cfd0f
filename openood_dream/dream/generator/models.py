"""The networks of a small latent diffusion pipeline, untrained, and its noise schedule."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import nn
from transformers import CLIPTextModel

from openood_dream.dream.prompts import Prompts, encode
from openood_dream.dream.settings import GeneratorTraining


def small_vae(settings: GeneratorTraining, image_size: int) -> AutoencoderKL:
    """An untrained autoencoder between images in [-1, 1] and latents.

    Args:
        settings: channels of its levels and of the latents.
        image_size: pixels S a side of the images.

    Returns:
        A module that takes images (B, 3, S, S) to latents (B, C, L, L) and back, with S / L = 2^(levels - 1).
    """
    levels = len(settings.vae_channels)
    return AutoencoderKL(
        block_out_channels=tuple(settings.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        sample_size=image_size,
        mid_block_add_attention=False,
    )


def small_unet(settings: GeneratorTraining, latent_size: int) -> UNet2DConditionModel:
    """An untrained noise predictor with cross-attention to text.

    One level by default, since small images have few latents: at equal time a narrow network that sees more samples
    learns more. The finest level has no attention: it has the most pixels and the least to do with the text.

    Args:
        settings: channels and blocks of its levels, and the width of the text.
        latent_size: L, the side of the latents.

    Returns:
        A module that takes noisy latents (B, C, L, L), steps (B,) and text (B, T, `text_dim`) to (B, C, L, L).
    """
    deeper = len(settings.unet_channels) - 1
    pooled = {
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 1,
        "resnet_time_scale_shift": "scale_shift",
    }
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        block_out_channels=tuple(settings.unet_channels),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
        layers_per_block=settings.unet_layers,
        cross_attention_dim=settings.text_dim,
        attention_head_dim=8,
        norm_num_groups=16,
        **(pooled if settings.pooled_text else {}),
    )


def noise_schedule(prediction: str = "epsilon") -> DDPMScheduler:
    """Stable Diffusion's noise schedule.

    Args:
        prediction: what the network predicts: epsilon, the noise, or v_prediction (Salimans & Ho 2022).

    Returns:
        The schedule, of 1000 steps.
    """
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction,
    )


def snr_weights(noise: DDPMScheduler, steps: torch.Tensor, cap: float) -> torch.Tensor:
    """Weights of the squared errors by their signal-to-noise ratio: min-SNR (Hang et al. 2023, Eq. 5 for noise and v).

    Args:
        noise: the noise schedule, which knows what is predicted.
        steps: the noise steps (B,).
        cap: the ratio above which the weight does not grow.

    Returns:
        Weights (B,).
    """
    snr = compute_snr(noise, steps)
    return snr.clamp(max=cap) / (snr if noise.config.prediction_type == "epsilon" else snr + 1)


class Autoencoding(nn.Module):
    """An autoencoder there and back, as it is trained.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The reconstruction of images (B, 3, S, S), and the mean KL divergence per latent number."""
        posterior = self.vae.encode(x).latent_dist
        reconstruction = self.vae.decode(posterior.sample()).sample
        return reconstruction.float(), posterior.kl().float().mean() / posterior.mean[0].numel()


class Denoiser(nn.Module):
    """Noise predictor and text transformer in one: what is trained and averaged together.

    Args:
        unet: the noise predictor.
        text: the text encoder, whose token embeddings are frozen: the anchors must stay what they are.
        prompts: the prompt of each class, and the empty one.
    """

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel, prompts: Prompts) -> None:
        super().__init__()
        self.unet, self.text = unet, text
        for name, tensor in vars(prompts).items():
            self.register_buffer(name, tensor, persistent=False)
        text.get_input_embeddings().weight.requires_grad_(False)

    def forward(
        self, noisy: torch.Tensor, steps: torch.Tensor, labels: torch.Tensor, moves: torch.Tensor, blank: torch.Tensor
    ) -> torch.Tensor:
        """Predicts the noise, or v, of noisy latents.

        Args:
            noisy: latents (B, C, L, L).
            steps: their noise steps (B,).
            labels: class labels (B,), which choose the prompts.
            moves: what is added to the tokens of the class names in them (B, m).
            blank: which samples have the empty prompt instead (B,).

        Returns:
            The prediction (B, C, L, L), float32.
        """
        ids, named, empty = (self.get_buffer(name) for name in ("ids", "named", "empty"))
        context = encode(self.text, ids[labels], named[labels], moves)[0]
        nothing = self.text(empty[None])[0]
        context = torch.where(blank.view(-1, 1, 1), nothing, context)
        return self.unet(noisy, steps, context).sample.float()
