"""Stable Diffusion XL (Podell et al., ICLR 2024), and what was distilled from it with the same parts."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionXLPipeline

from openood_dream.dream.families.base import Family, family
from openood_dream.dream.prompts import Prompt


@family("stable_diffusion_xl")
class StableDiffusionXL(Family):
    """Two text encoders: the UNet attends to the last layer but one of both, and takes the pooled output of the second.

    Its embeddings are those of both encoders, one after the other.
    """

    text_encoders = ("text_encoder", "text_encoder_2")
    loader = StableDiffusionXLPipeline
    options = {"add_watermarker": False}

    def encode(
        self, prompts: list[list[Prompt]], labels: torch.Tensor, tokens: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The two encodings, with arguments as `Family.encode` takes them.

        Args:
            prompts: for each of the two text encoders, a prompt of each class.
            labels: the class of each sample (B,).
            tokens: class tokens (B, m), or None.

        Returns:
            `prompt_embeds` (B, L, D1 + D2) and `pooled_prompt_embeds` (B, P).
        """
        outputs = self.outputs(prompts, labels, tokens, output_hidden_states=True)
        return {
            "prompt_embeds": torch.cat([output.hidden_states[-2] for output in outputs], dim=-1),
            "pooled_prompt_embeds": outputs[1][0],
        }
