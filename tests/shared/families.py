"""Tiny pipelines of random weights, one of each architecture of the Stable Diffusion family, saved as diffusers saves."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from openood_dream.dream.source import word_tokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "sd1": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    "sd2": lambda: DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, steps_offset=1),
    "sdxl": lambda: EulerDiscreteScheduler(**BETAS, steps_offset=1),
    "lcm": lambda: LCMScheduler(**BETAS, steps_offset=1),
    "turbo": lambda: EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1),
}


def text_encoder(tokenizer: CLIPTokenizer, width: int, cls=CLIPTextModel, act: str = "quick_gelu") -> CLIPTextModel:
    encoder = cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act=act,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    table = encoder.get_input_embeddings().weight
    table.data.copy_(torch.randn(table.shape))
    return encoder


def save(folder: Path, family: str, names: list[str]) -> Path:
    """Saves a pipeline that knows the class names: 16x16 images, 4x4 latents, prompts of 12 tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = word_tokenizer([*names, "A high-quality image of the blurry"])
        tokenizer.model_max_length = 12
        xl = family == "sdxl"
        widths = (16, 24) if xl else (16,)
        text = text_encoder(tokenizer, 16, act="gelu" if family == "sd2" else "quick_gelu")
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=sum(widths),
            attention_head_dim=4,
            norm_num_groups=4,
            use_linear_projection=family == "sd2",
            time_cond_proj_dim=8 if family == "lcm" else None,
            # pooled text and six numbers of size and crop, which are eight values each
            **({"addition_embed_type": "text_time", "addition_time_embed_dim": 8} if xl else {}),
            **({"projection_class_embeddings_input_dim": widths[-1] + 6 * 8} if xl else {}),
        )
        for name, weight in unet.named_parameters():  # at their start, cross-attention hardly moves the image
            if "attn2.to_" in name:
                weight.data.mul_(8)
        parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "unet": unet}
        parts["scheduler"] = SCHEDULERS[family]()
        if xl:
            second = text_encoder(tokenizer, 24, CLIPTextModelWithProjection, "gelu")
            pipeline = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer)
        else:
            cls = LatentConsistencyModelPipeline if family == "lcm" else StableDiffusionPipeline
            pipeline = cls(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return folder
