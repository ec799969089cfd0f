"""A step of the generator's training on a CPU, in bfloat16: attention as we have it computed, and as torch chooses it."""

from __future__ import annotations

import pytest
import torch

from openood_dream.device import autocast
from openood_dream.dream.generator.models import small_unet
from openood_dream.dream.generator.training import attention
from openood_dream.dream.settings import GeneratorTraining

CPU, DTYPE, BATCH, SIZE = torch.device("cpu"), torch.bfloat16, 32, 16


def test_a_step_in_bfloat16(against):
    """The UNet of `synthesis/cifar10_small.yml`, forward and backward, on latents of 16 by 16."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN has no fast bfloat16 here")
    torch.manual_seed(0)
    settings = GeneratorTraining(train="small", latent_channels=4, unet_channels=[64, 128], pooled_text=True)
    unet = small_unet(settings, SIZE).train().to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, 4, SIZE, SIZE).to(memory_format=torch.channels_last)
    t, text, pooled = torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, 12, 64), torch.randn(BATCH, 64)

    def step() -> float:
        unet.zero_grad()
        with autocast(CPU, DTYPE):
            guess = unet(x, t, text, class_labels=pooled).sample
        loss = guess.float().square().mean()
        loss.backward()
        return loss.item()

    def ours() -> float:
        with attention(CPU, DTYPE):
            return step()

    found, expected = against(ours, step, "torch's fused attention", wanted=1.1, rounds=5)
    assert found == pytest.approx(expected, rel=0.02)
