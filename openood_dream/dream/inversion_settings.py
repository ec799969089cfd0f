"""Settings of the diffusion embeddings, for settings.py and for what finds them."""

from __future__ import annotations

from pydantic import Field

from openood_dream.config.schema import Section


class InversionSettings(Section):
    """`dream.space.inversion`: class tokens that are fitted to single images by the diffusion loss (NCIS)."""

    section = "dream.space.inversion"

    steps: int = Field(3, ge=1, description="steps of Adam for an image, from the class's own token")
    noises: int = Field(32, ge=1, description="noisy versions of the image in a step")
    lr: float = Field(
        0.7,
        gt=0,
        le=100,
        description="learning rate, in parts of the root mean square of the class token's numbers; 0.7 is NCIS's 0.01 for"
        " Stable Diffusion 1",
    )
    batch_size: int = Field(32, ge=1, description="noisy versions, of one image or several, that are denoised at once")
