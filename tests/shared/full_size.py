"""Stable Diffusion 1.4 at its full size with random weights: built and drawn with in processes of their own, to see their memory.

python full_size.py build FOLDER
python full_size.py draw FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source, word_tokenizer

NAMES, TEMPLATE = ["cat", "dog"], "A high-quality image of the {}"


def stable_diffusion(folder: Path, names: list[str]) -> dict[str, int]:
    """Saves the pipeline by its published configuration; returns the number of weights of each part."""
    tokenizer = word_tokenizer([*names, TEMPLATE.format("")])
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    parts = {
        "vae": AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
        ),
        "text_encoder": CLIPTextModel(text),
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    }
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


def build(folder: Path) -> dict[str, int]:
    """Saves it in bfloat16, half the size."""
    torch.set_default_dtype(torch.bfloat16)
    return stable_diffusion(folder, NAMES)


def draw(folder: Path) -> dict[str, object]:
    """Draws two images of 256 pixels in two steps, of embeddings near the class names; returns their shape and spread."""
    settings = SynthesisSettings(steps=2, size=256, save_size=None, dtype="bfloat16")
    imaginer = Imaginer(load_pipeline(Source(str(folder), None, None), settings, "cpu"), NAMES, settings)
    tokens = 0.02 * torch.randn(2, imaginer.width, generator=torch.Generator().manual_seed(0))
    images = imaginer(torch.tensor([0, 1]), tokens, [1, 2])
    return {"shape": list(images.shape), "deviation": images.float().std().item()}


if __name__ == "__main__":
    found = {"build": build, "draw": draw}[sys.argv[1]](Path(sys.argv[2]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    print(json.dumps(found | {"peak_bytes": peak}))
