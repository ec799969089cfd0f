"""Stable Diffusion 1 and 2 (Rombach et al., CVPR 2022), and what was distilled from them with the same parts."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline

from openood_dream.dream.families.base import Family, family
from openood_dream.dream.prompts import Prompt


@family("stable_diffusion")
class StableDiffusion(Family):
    """One text encoder, whose last layer the UNet attends to.

    The safety checker is left out: it blackens images that it dislikes, and outliers are what we are after.
    """

    text_encoders = ("text_encoder",)
    loader = StableDiffusionPipeline
    options = {"safety_checker": None, "requires_safety_checker": False}

    def encode(
        self, prompts: list[list[Prompt]], labels: torch.Tensor, tokens: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The encoder's last layer (B, L, D), with arguments as `Family.encode` takes them.

        Args:
            prompts: for the one text encoder, a prompt of each class.
            labels: the class of each sample (B,).
            tokens: class tokens (B, m), or None.

        Returns:
            `prompt_embeds`.
        """
        (output,) = self.outputs(prompts, labels, tokens)
        return {"prompt_embeds": output[0]}
