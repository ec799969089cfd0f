"""Diffusion embeddings against the public procedure (NCIS), on the same weights and noise: `make bench`.

The public code takes one image at a time: each time it copies the whole table of token embeddings, gives Adam all of it, and
sets the gradients of all rows but the class name's to zero.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from bench_frl import DEVICE
from bench_imagine import NAMES, small
from diffusers import StableDiffusionPipeline

from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.inversion import LEVELS, Inverter
from openood_dream.dream.inversion_settings import InversionSettings
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source

IMAGES = 32
VOCABULARY = 49408  # rows of CLIP's table, which the public code copies and trains


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Imaginer:
    """The embedded default at the size of the digits, with a table as long as CLIP's."""
    folder = small(tmp_path_factory.mktemp("small") / "pipeline")
    found = StableDiffusionPipeline.from_pretrained(folder)
    found.text_encoder.resize_token_embeddings(VOCABULARY)
    found.save_pretrained(folder)
    settings = SynthesisSettings(size=None, dtype="float32")
    return Imaginer(load_pipeline(Source(str(folder), None, None), settings, DEVICE.type), NAMES, settings)


def published(imaginer: Imaginer, settings: InversionSettings, images, labels, seeds) -> torch.Tensor:
    """The public procedure, with our noise and on the sphere of the anchor, so that results are equal."""
    pipe, found = imaginer.pipeline, []
    device, table = pipe.device, pipe.text_encoder.get_input_embeddings()
    for image, label, seed in zip(images, labels.tolist(), seeds):
        (name,) = pipe.tokenizer(NAMES[label], add_special_tokens=False).input_ids
        ids = pipe.tokenizer(imaginer.placeholder.texts[label], padding="max_length", return_tensors="pt")
        original = table.weight.detach().clone()
        anchor = original[name]
        weight = (original / (anchor.norm() / len(anchor) ** 0.5)).requires_grad_()
        optimizer = torch.optim.Adam([weight], settings.lr)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            clean = pipe.vae.encode(image[None].to(device)).latent_dist.mean * pipe.vae.config.scaling_factor
        for _ in range(settings.steps):
            t = (torch.randint(LEVELS, (settings.noises,), generator=generator) * 20 + 1).to(device)
            noise = torch.randn(settings.noises, *clean.shape[1:], generator=generator).to(device)
            optimizer.zero_grad()
            row = anchor.norm() * F.normalize(weight, dim=1)
            hook = table.register_forward_hook(lambda module, args, output, row=row: F.embedding(args[0], row))
            context = pipe.text_encoder(ids.input_ids.to(device))[0].repeat(settings.noises, 1, 1)
            hook.remove()
            alpha = pipe.scheduler.alphas_cumprod.to(device)[t][:, None, None, None]
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            loss = (pipe.unet(noisy, t, context).sample - noise).square().mean()
            loss.backward()
            assert weight.grad is not None
            weight.grad[torch.arange(len(weight), device=device) != name] = 0
            optimizer.step()
        found.append(F.normalize(weight[name].detach(), dim=0).cpu())
    return torch.stack(found)


def test_inverting_with_the_small_pipeline(against, benchmark, pipeline):
    """Images of the digits' size, three steps of 32 noises."""
    torch.manual_seed(0)
    images, labels, seeds = torch.rand(IMAGES, 3, 16, 16) * 2 - 1, torch.arange(IMAGES) % len(NAMES), range(IMAGES)
    settings = InversionSettings(batch_size=1024)
    inverter = Inverter(pipeline, settings)
    ours, theirs = against(
        lambda: inverter(images, labels, seeds)[0],
        lambda: published(pipeline, settings, images, labels, seeds),
        "the public procedure",
        wanted=5,
    )
    assert (ours * theirs).sum(1).min() > 0.999
    if benchmark.stats is not None:
        benchmark.extra_info["images per second"] = IMAGES / benchmark.stats.stats.min
