"""Whether the parts of a pipeline fit each other and what is asked of them: found by their configs, before long stages."""

from __future__ import annotations

from typing import Any

import diffusers

from openood_dream.dream.imaginer import OWN, SCHEDULERS
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError, reason

# what pipelines are for whose UNet takes so many channels more than latents have
OTHER_TASKS = {5: "inpainting", 4: "editing images (InstructPix2Pix)", 1: "depth"}


def check_parts(source: Source, settings: SynthesisSettings) -> None:
    """Checks that UNet, VAE and text encoders of a pipeline fit each other, and that its scheduler takes the steps.

    Args:
        source: where the pipeline comes from; only configs are read.
        settings: how images are to be drawn.

    Raises:
        InputError: the pipeline is none that draws images of text alone, its parts do not fit, or there are too many steps.
    """
    if not (source.index.get("unet") or [None])[0]:  # that other parts fit, and that they take the steps, drawing shows
        return
    unet, vae = source.config("unet"), source.config("vae")
    channels, latents = unet.get("in_channels"), vae.get("latent_channels")
    if channels != latents:
        task = OTHER_TASKS.get((channels or 0) - (latents or 0))
        what = f"a pipeline for {task}" if task else "of parts that do not fit"
        raise InputError(
            f"{source.where}: {source.path!r} is {what}: its unet takes {channels} channels, its vae's latents have {latents}; "
            "expected one that draws images of text alone"
        )
    texts = source.text_names(source.index)
    width = sum(source.config(part).get("hidden_size") or 0 for part in texts)
    takes = unet.get("cross_attention_dim")
    if isinstance(takes, int) and not unet.get("encoder_hid_dim_type") and takes != width:
        raise InputError(
            f"{source.where}: {source.path!r} has parts that do not fit: its unet takes text of {takes} numbers a token, its "
            f"text encoders ({', '.join(texts)}) give {width}"
        )
    check_steps(source.index["scheduler"][1], source.config("scheduler"), settings)


def check_steps(cls: str, config: dict[str, Any], settings: SynthesisSettings) -> None:
    """Checks that a scheduler can take as many steps as `dream.synthesis.steps` says.

    Args:
        cls: the class of the pipeline's own scheduler.
        config: its config.
        settings: steps and scheduler.

    Raises:
        InputError: it cannot; the message has the scheduler's reason.
    """
    name, options = (cls, {}) if settings.scheduler == OWN else SCHEDULERS[settings.scheduler]
    scheduler = getattr(diffusers, name).from_config(config, **options)
    try:
        scheduler.set_timesteps(settings.steps)
        last, known = float(scheduler.timesteps.max()), scheduler.config.num_train_timesteps
        # those with sigmas interpolate between the steps of the training, the others look them up
        if settings.steps > known or last > known - 1 and not hasattr(scheduler, "sigmas"):
            raise ValueError(f"it was trained with steps 0 to {known - 1}, and would begin at {last:g}")
    except Exception as error:  # schedulers refuse in many ways
        raise settings.error(
            "steps", f"{settings.steps} are too many for the scheduler {settings.scheduler} ({reason(error)}); lower it"
        ) from None
