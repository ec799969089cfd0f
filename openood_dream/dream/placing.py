"""Where a pipeline's parts lie and in which number formats, so that they fit into the memory that there is."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from diffusers import DiffusionPipeline

from openood_dream.dream.settings import SynthesisSettings

LARGE = 256  # pixels a side from which images are decoded one by one: a decoder takes some GB for one of 512


def drawing_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of the key `dream.synthesis.dtype`.

    Args:
        name: auto, float32, float16 or bfloat16; auto is bfloat16 on a GPU that computes in it, float16 on others, and
            float32 on a CPU.
        device: where the pipeline draws.

    Returns:
        A number format of torch.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def place_pipeline(pipeline: DiffusionPipeline, settings: SynthesisSettings, device: torch.device, size: int) -> None:
    """Puts a loaded pipeline where it draws, in the way that the settings say.

    Args:
        pipeline: the pipeline, on the CPU.
        settings: offload, vae_tiling and compile.
        device: where it draws.
        size: pixels a side of its images.

    Raises:
        InputError: offload without a CUDA GPU, or tiles for an autoencoder that has none.
    """
    vae, core = pipeline.vae, getattr(pipeline, "unet", None) or pipeline.transformer
    if vae.dtype is torch.float16:
        compute_in_float32(vae)
    if size >= LARGE and hasattr(vae, "use_slicing"):
        vae.enable_slicing()
    if settings.vae_tiling:
        if not hasattr(vae, "use_tiling"):
            raise settings.error("vae_tiling", f"{type(vae).__name__} knows no tiles; expected false")
        vae.enable_tiling()
    if settings.offload != "none":
        if device.type != "cuda":
            raise settings.error(
                "offload", f"keeps parts off a CUDA GPU, and device is {device.type}; expected none, or device: cuda"
            )
        offload = pipeline.enable_model_cpu_offload if settings.offload == "model" else None
        (offload or pipeline.enable_sequential_cpu_offload)(device=device)
    else:
        pipeline.to(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        for part in (getattr(pipeline, "unet", None), vae):
            if part is not None and settings.offload != "sequential":  # transformers have no use for it
                part.to(memory_format=torch.channels_last)
    if settings.compile:
        core.compile()


def compute_in_float32(vae: Any) -> None:
    """Has an autoencoder compute in float32, whatever it is given: float16 ends at 65504, and decoders go beyond it.

    Args:
        vae: the autoencoder.
    """
    vae.to(torch.float32)
    encode, decode = vae.encode, vae.decode

    @wraps(encode)
    def encode_in_float32(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        output = encode(x.float(), *args, **options)
        found = getattr(output, "latent_dist", None)
        if found is not None:  # pipelines go on with latents as they are
            output.latent_dist = type(found)(found.parameters.to(x.dtype))
        return output

    @wraps(decode)
    def decode_in_float32(z: torch.Tensor, *args: Any, **options: Any) -> Any:
        return decode(z.float(), *args, **options)

    vae.encode, vae.decode = encode_in_float32, decode_in_float32


def drawing_device(pipeline: DiffusionPipeline) -> torch.device:
    """Where a pipeline computes: with offload its parts lie elsewhere.

    Args:
        pipeline: the pipeline.

    Returns:
        The device.
    """
    return pipeline._execution_device
