"""Tiny pipelines of random weights of families that have no UNet, made of diffusers' own classes and saved as it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from openood_dream.dream.source import text_to_image

TEXTS = ["A high-quality image of the red panda", "cat dog panda image quality"]
CHAT = "{% for message in messages %}<user>{{ message['content'] }}</s>{% endfor %}<assistant>"


def tokenizer(length: int = 77) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer by whom most names are several tokens."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=learner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],  # as T5's; some versions of transformers have one more
    )
    found.chat_template = CHAT
    return found


def clip(width: int = 16, projection: bool = True) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5(width: int = 32) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        is_encoder_decoder=False,
    )
    found = transformers.T5EncoderModel(config)
    found.get_input_embeddings().weight.data.mul_(20)  # T5's rows are far longer than CLIP's
    return found


def decoder(kind: str, width: int = 32, layers: int = 2) -> Any:
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    shape |= {"num_key_value_heads": 2, "head_dim": width // 2, "vocab_size": len(tokenizer()), "pad_token_id": 0}
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**shape))


def vae(channels: int = 4, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **{"shift_factor": 0.1, "scaling_factor": 1.0} | options,
    )


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def sd3() -> dict[str, Any]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=40,
        pooled_projection_dim=40,
        out_channels=4,
    )
    return {
        "transformer": transformer,
        "scheduler": flow(),
        "vae": vae(),
        **{"text_encoder": clip(16), "tokenizer": tokenizer(), "text_encoder_2": clip(24), "tokenizer_2": tokenizer()},
        **{"text_encoder_3": t5(40), "tokenizer_3": tokenizer()},
    }


def flux() -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    return {
        "scheduler": flow(),
        "vae": vae(),
        "text_encoder": clip(16, projection=False),
        "tokenizer": tokenizer(),
        "text_encoder_2": t5(32),
        "tokenizer_2": tokenizer(),
        "transformer": transformer,
    }


def flux2_klein() -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    parts = {"scheduler": flow(), "vae": autoencoder, "tokenizer": tokenizer(512), "transformer": transformer}
    return parts | {"text_encoder": decoder("Qwen3", layers=28)}  # of which it takes layers 9, 18 and 27


def with_t5(transformer: Any) -> dict[str, Any]:
    parts = {"scheduler": flow(), "vae": vae(), "tokenizer": tokenizer(512), "transformer": transformer}
    return parts | {"text_encoder": t5()}


def chroma() -> dict[str, Any]:
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return with_t5(transformer)


def aura_flow() -> dict[str, Any]:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    return with_t5(transformer)


def pixart_sigma() -> dict[str, Any]:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "vae": vae(shift_factor=None),  # its pipeline knows none
        "transformer": transformer,
        "scheduler": scheduler,
    }


def sana() -> dict[str, Any]:
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=32,
        sample_size=8,
    )
    autoencoder = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": decoder("Gemma2"),
        "vae": autoencoder,
        "transformer": transformer,
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
    }


def lumina2() -> dict[str, Any]:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=[4, 2, 2],
        axes_lens=[300, 512, 512],
        cap_feat_dim=32,
    )
    parts = {"transformer": transformer, "scheduler": flow(), "vae": vae()}
    return parts | {"text_encoder": decoder("Gemma2"), "tokenizer": tokenizer(512)}


def z_image() -> dict[str, Any]:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=32,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for parameter in transformer.parameters():  # some of it is made empty
        torch.nn.init.normal_(parameter, std=0.05)
    parts = {"scheduler": flow(), "vae": vae(16), "text_encoder": decoder("Qwen3"), "tokenizer": tokenizer(512)}
    return parts | {"transformer": transformer}


def qwen_image() -> dict[str, Any]:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shape | {"num_key_value_heads": 2, "vocab_size": len(tokenizer()), "rope_scaling": ROPE, "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    ids = {"vision_start_token_id": 4, "vision_end_token_id": 5, "image_token_id": 4, "video_token_id": 5}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    return {
        "scheduler": flow(),
        "vae": autoencoder,
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": tokenizer(512),
        "transformer": transformer,
    }


ROPE = {"type": "default", "rope_type": "default", "mrope_section": [4, 2, 2]}
BUILDERS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "sd3": ("StableDiffusion3Pipeline", sd3),
    "flux": ("FluxPipeline", flux),
    "flux2_klein": ("Flux2KleinPipeline", flux2_klein),
    "chroma": ("ChromaPipeline", chroma),
    "aura_flow": ("AuraFlowPipeline", aura_flow),
    "pixart_sigma": ("PixArtSigmaPipeline", pixart_sigma),
    "sana": ("SanaPipeline", sana),
    "lumina2": ("Lumina2Pipeline", lumina2),
    "z_image": ("ZImagePipeline", z_image),
    "qwen_image": ("QwenImagePipeline", qwen_image),
}


def save(folder: Path, family: str) -> Path:
    """Saves a pipeline of a family; skips the test where diffusers or transformers is too old to know it."""
    name, build = BUILDERS[family]
    if not hasattr(diffusers, name) or name not in text_to_image():
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}, or does not say what it draws of")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            pipeline = getattr(diffusers, name)(**build())
        except AttributeError as error:
            pytest.skip(f"too old for {name}: {error}")
        pipeline.save_pretrained(folder)
    return folder
