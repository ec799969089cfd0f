"""The noise schedule is Stable Diffusion's, and the weights are the paper's."""

from __future__ import annotations

import diffusers
import pytest
import torch

from openood_dream.dream.generator.models import noise_schedule, small_unet, small_vae, snr_weights
from openood_dream.dream.settings import GeneratorTraining


def test_noise_schedule():
    betas = noise_schedule().betas
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000)
    assert torch.allclose(betas, root**2, atol=1e-6)
    assert isinstance(noise_schedule(), diffusers.DDPMScheduler)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction):
    noise = noise_schedule(prediction)
    for t in (0, 300, 999):
        signal, spread = noise.alphas_cumprod[t].sqrt().item(), (1 - noise.alphas_cumprod[t]).sqrt().item()
        snr = signal**2 / spread**2
        expected = min(snr, 5) / (snr if prediction == "epsilon" else snr + 1)
        assert snr_weights(noise, torch.tensor([t]), 5.0).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("pooled_text", [False, True])
def test_sizes(pooled_text):
    settings = GeneratorTraining(
        train="small", vae_channels=[8, 16], latent_channels=4, unet_channels=[16, 32], pooled_text=pooled_text
    )
    vae, unet = small_vae(settings, 16).eval(), small_unet(settings, 8).eval()
    with torch.no_grad():
        latents = vae.encode(torch.zeros(2, 3, 16, 16)).latent_dist.mode()
        assert latents.shape == (2, 4, 8, 8) and vae.decode(latents).sample.shape == (2, 3, 16, 16)
        text = torch.zeros(2, 5, settings.text_dim)
        assert unet(latents, torch.tensor([1, 2]), text).sample.shape == (2, 4, 8, 8)
