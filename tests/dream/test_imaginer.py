"""Embeddings to images: the right embedding, the right seed, and what diffusers alone would draw."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from openood_dream.dream import placing
from openood_dream.dream.imaginer import OWN, SCHEDULERS, Imaginer, check_anchors, image_seed, load_pipeline
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError, InputWarning

TEMPLATE = "A high-quality image of the {}"


def synthesis(**changes) -> SynthesisSettings:
    return SynthesisSettings(**{"steps": 3, "guidance": 3.0, "size": 16, "save_size": None} | changes)


def pipeline(folder: Path, **changes) -> StableDiffusionPipeline:
    return load_pipeline(Source(str(folder), None, None), synthesis(**changes), "cpu")


@pytest.fixture(scope="module")
def pipe(pipeline_folder) -> StableDiffusionPipeline:
    return pipeline(pipeline_folder)


@pytest.fixture(scope="module")
def draw(pipe, names):
    """Draws images (B, 3, S, S) as int for labels, tokens and seeds, with some settings changed."""

    def draw(labels, tokens, seeds, **changes) -> torch.Tensor:
        imaginer = Imaginer(pipe, names, synthesis(**changes))
        return imaginer(torch.tensor(labels), tokens, list(seeds)).int()

    return draw


def anchor(pipe, name: str) -> torch.Tensor:
    (token,) = pipe.tokenizer(name, add_special_tokens=False).input_ids
    return pipe.text_encoder.get_input_embeddings().weight.detach()[token]


def tokens_like(pipe, count: int) -> torch.Tensor:
    """Random embeddings as long as the tokens of the pipeline."""
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    return torch.nn.functional.normalize(torch.randn(count, table.shape[1]), dim=1) * table.norm(dim=1).mean()


# ------------------------------------------------------------------------------------------------------------- drawing


def test_plain_prompts_are_what_diffusers_draws(pipe, draw, names):
    labels, seeds = [0, 2, 0], [3, 4, 2**40]
    noise = torch.stack([torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    expected = pipe(
        prompt=[TEMPLATE.format(names[label]) for label in labels],
        negative_prompt=["blurry"] * 3,
        latents=noise,
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="np",
    ).images
    found = draw(labels, None, seeds, negative_prompt="blurry")
    assert np.abs(found.permute(0, 2, 3, 1).numpy() - 255 * expected).max() <= 1


def test_image_does_not_depend_on_its_batch(pipe, draw):
    labels, tokens, seeds = [0, 1, 2, 1, 0], tokens_like(pipe, 5), range(10, 15)
    batch = draw(labels, tokens, seeds)
    order = [3, 0, 4, 2, 1]
    shuffled = draw([labels[i] for i in order], tokens[order], [seeds[i] for i in order])
    for place, i in enumerate(order):
        # float sums depend on the size of a batch, which can move a pixel by a rounding step
        assert (shuffled[place] - batch[i]).abs().max() <= 1
        assert (draw([labels[i]], tokens[i : i + 1], [seeds[i]])[0] - batch[i]).abs().max() <= 1


def test_embedding_and_seed_change_the_image(pipe, draw):
    tokens = tokens_like(pipe, 2)
    images = draw([0, 0, 0], tokens[[0, 1, 0]], [7, 7, 8])
    assert (images[0] - images[1]).abs().max() > 3 and (images[0] - images[2]).abs().max() > 3


def test_a_greater_move_changes_the_image_more(pipe, draw):
    start, away = anchor(pipe, "cat"), tokens_like(pipe, 1)[0]
    tokens = torch.stack([start + step * (away - start) for step in (0, 0.05, 1)])
    plain, near, far = draw([0] * 3, tokens, [1] * 3).float()
    assert 0 < (near - plain).square().mean() < (far - plain).square().mean()


@pytest.mark.parametrize("guidance, rows", [(0.0, 2), (1.0, 2), (1.5, 4)])
def test_without_guidance_no_unconditional_half(pipe, draw, guidance, rows):
    seen = []
    hook = pipe.unet.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    draw([0, 1], tokens_like(pipe, 2), [0, 1], guidance=guidance)
    hook.remove()
    assert set(seen) == {rows}


def test_guidance_and_negative_prompt_change_the_image(pipe, draw):
    token = tokens_like(pipe, 1)
    plain = draw([0], token, [0], guidance=1.0)
    for changes in ({"guidance": 4.0}, {"guidance": 4.0, "negative_prompt": "blurry"}):
        assert not torch.equal(plain, draw([0], token, [0], **changes))
    assert torch.equal(plain, draw([0], token, [0], guidance=1.0, negative_prompt="blurry"))


def test_drawn_and_saved_size(pipe, draw):
    token = tokens_like(pipe, 1)
    assert draw([0], token, [0], size=None).shape == (1, 3, 16, 16)  # the pipeline's own size
    assert draw([0], token, [0], size=24, save_size=None).shape == (1, 3, 24, 24)
    full, half = draw([0], token, [0]), draw([0], token, [0], save_size=8)
    picture = Image.fromarray(full[0].permute(1, 2, 0).numpy().astype(np.uint8))
    expected = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(half[0].permute(1, 2, 0).numpy() - expected).max() <= 1


def test_text_is_encoded_once_per_batch(pipe, names):
    seen = []
    hook = pipe.text_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    imaginer = Imaginer(pipe, names, synthesis())
    for _ in range(3):
        imaginer(torch.tensor([0, 1]), tokens_like(pipe, 2), [1, 2])
    hook.remove()
    assert seen == [2, 2] * 3  # the prompts, and the negative ones


# ------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_scheduler(pipeline_folder, names, scheduler):
    pipe = pipeline(pipeline_folder, scheduler=scheduler)
    assert type(pipe.scheduler).__name__ == SCHEDULERS[scheduler][0]
    images = Imaginer(pipe, names, synthesis())(torch.tensor([0, 1]), tokens_like(pipe, 2), [1, 2])
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.uint8 and images.float().std() > 1


def test_settings_allow_every_scheduler():
    allowed = get_args(SynthesisSettings.model_fields["scheduler"].annotation)
    assert set(allowed) == {OWN, *SCHEDULERS}


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_number_format(pipeline_folder, name):
    pipe = pipeline(pipeline_folder, dtype=name)
    assert {pipe.unet.dtype, pipe.text_encoder.dtype} == {getattr(torch, name)}
    assert pipe.vae.dtype is {"float16": torch.float32}.get(name, getattr(torch, name))  # float16 overflows in decoders


def test_safety_checker_is_left_out(pipe):
    assert pipe.safety_checker is None


def test_large_images_are_decoded_one_by_one(pipeline_folder, names, draw, pipe, monkeypatch):
    monkeypatch.setattr(placing, "LARGE", 16)
    sliced, tokens = pipeline(pipeline_folder), tokens_like(pipe, 3)
    seen = []
    sliced.vae.decoder.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    found = Imaginer(sliced, names, synthesis())(torch.tensor([0, 1, 2]), tokens, [1, 2, 3]).int()
    assert seen == [1, 1, 1]
    assert (found - draw([0, 1, 2], tokens, [1, 2, 3])).abs().max() <= 1


def test_tiles(pipeline_folder, names, pipe):
    """Of the autoencoder's own size, 16 pixels."""
    tiled = pipeline(pipeline_folder, vae_tiling=True, size=48)
    seen = []
    tiled.vae.decoder.register_forward_hook(lambda module, args, output: seen.append(output.shape[-1]))
    image = Imaginer(tiled, names, synthesis(size=48))(torch.tensor([0]), tokens_like(pipe, 1), [1])
    assert image.shape == (1, 3, 48, 48) and len(seen) > 4 and max(seen) <= 16


def test_offload_wants_a_gpu(pipeline_folder):
    for kind in ("model", "sequential"):
        with pytest.raises(InputError, match=r"dream\.synthesis\.offload: .* device is cpu; expected none"):
            pipeline(pipeline_folder, offload=kind)


@pytest.mark.slow
def test_compiled_unet_gives_the_same_images(pipeline_folder, names, draw, pipe):
    compiled = pipeline(pipeline_folder, compile=True)
    tokens = tokens_like(pipe, 2)
    found = Imaginer(compiled, names, synthesis())(torch.tensor([0, 1]), tokens, [1, 2]).int()
    assert (found - draw([0, 1], tokens, [1, 2])).abs().max() <= 1


# ----------------------------------------------------------------------------------------------------------- bad input


def test_embeddings_of_another_width(pipe, names):
    with pytest.raises(InputError, match=r"dream\.generator: .* 16 numbers, the anchors have 768"):
        check_anchors(Imaginer(pipe, names, synthesis()), torch.randn(3, 768))


def test_prompt_too_long(pipe, names):
    with pytest.raises(InputError, match=r"dream\.synthesis\.prompt: 'cat' ends at token 11, the generator takes 10"):
        Imaginer(pipe, names, synthesis(prompt="the " * 10 + "{}"))
    with pytest.raises(InputError, match=r"dream\.synthesis\.negative_prompt: .*12 tokens"):
        Imaginer(pipe, names, synthesis(negative_prompt="the " * 12))


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("MPS backend out of memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORT, ids=range(len(SHORT)))
def test_too_little_memory_for_an_image(pipe, draw, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipe.unet, "forward", full)
    with pytest.raises(InputError, match=r"dream\.synthesis\.size: an image of 16 pixels does not fit into"):
        draw([0], tokens_like(pipe, 1), [0])


@pytest.fixture
def small_memory(pipe, monkeypatch) -> list[int]:
    """The images of each step that the UNet was asked for; it takes two, with guidance as four rows."""
    seen, forward = [], pipe.unet.forward

    def limited(sample, *args, **kwargs):
        seen.append(len(sample) // 2)
        if len(sample) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", limited)
    return seen


def test_batches_are_halved_until_they_fit(pipe, names, draw, small_memory, monkeypatch):
    labels, tokens, seeds = torch.arange(7) % 3, tokens_like(pipe, 7), list(range(7))
    imaginer = Imaginer(pipe, names, synthesis())
    with pytest.warns(
        InputWarning, match=r"synthesis\.batch_size: 7 images of 16 pixels do not fit .* 4 at most"
    ) as said:
        images = imaginer(labels, tokens, seeds)
    assert [one.category for one in said].count(InputWarning) == 2
    assert small_memory == [7, 4, *[2] * 9, *[1] * 3]
    small_memory.clear()
    again = imaginer(labels[:3], tokens[:3], seeds[:3])
    assert (again.int() - images[:3].int()).abs().max() <= 1
    assert small_memory == [2] * 3 + [1] * 3  # the next batch does not try again
    monkeypatch.undo()
    assert (images.int() - draw(labels.tolist(), tokens, seeds)).abs().max() <= 1


def test_latents_and_plain_prompts_are_halved_too(pipe, names, small_memory, monkeypatch):
    labels, tokens, seeds = torch.tensor([0, 1, 2]), tokens_like(pipe, 3), [4, 5, 6]
    with pytest.warns(InputWarning, match="do not fit"):
        latents = Imaginer(pipe, names, synthesis()).latents(labels, tokens, seeds)
    with pytest.warns(InputWarning, match="do not fit"):
        plain = Imaginer(pipe, names, synthesis())(labels, None, seeds)
    monkeypatch.undo()
    whole = Imaginer(pipe, names, synthesis())
    assert torch.allclose(latents, whole.latents(labels, tokens, seeds), atol=2e-2)  # of 20
    assert (plain.int() - whole(labels, None, seeds).int()).abs().max() <= 1


# --------------------------------------------------------------------------------------------------------------- seeds


def test_seeds_differ_and_stay():
    seeds = [image_seed(seed, number) for seed in range(3) for number in range(200)]
    assert len(set(seeds)) == 600 and all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(0, 0) == int(hashlib.sha256(b"0/0").hexdigest()[:12], 16)


def test_settings_and_source_travel_to_workers(tiny):
    settings = tiny.config().dream.synthesis
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301
    assert pickle.loads(pickle.dumps(settings)).where("size") == settings.where("size")  # noqa: S301


# ---------------------------------------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_numbers_that_are_not_finite_are_refused(pipeline_folder, names, part):
    broken = pipeline(pipeline_folder)
    next(broken.components[part].parameters() if part == "unet" else broken.vae.decoder.parameters()).data.fill_(
        float("nan")
    )
    with pytest.raises(FloatingPointError, match=r"dream\.synthesis\.dtype: StableDiffusionPipeline draws numbers"):
        Imaginer(broken, names, synthesis())(torch.tensor([0]), None, [1])


def test_latents_that_are_not_finite_are_refused(pipeline_folder, names):
    broken = pipeline(pipeline_folder)
    next(broken.unet.parameters()).data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="draws numbers"):
        Imaginer(broken, names, synthesis()).latents(torch.tensor([0]), tokens_like(broken, 1), [1])


def test_images_of_one_colour_are_refused(pipeline_folder, names):
    black = pipeline(pipeline_folder)
    for parameter in black.vae.decoder.conv_out.parameters():
        parameter.data.zero_()
    black.vae.decoder.conv_out.bias.data.fill_(-5)
    with pytest.raises(FloatingPointError, match=r"dream\.synthesis: .* one colour \(0 of 255\) with 3 steps"):
        Imaginer(black, names, synthesis())(torch.tensor([0, 1]), None, [1, 2])


def test_a_decoder_that_overflows_in_half_precision(pipeline_folder, names):
    """Numbers beyond 65504 on the way through the decoder, which a norm takes back."""
    largest, drawn = [], []
    for dtype in ("float16", "float32"):
        pipe = pipeline(pipeline_folder, dtype=dtype)
        with torch.no_grad():
            pipe.vae.decoder.conv_in.weight.mul_(1e6)
        pipe.vae.decoder.conv_in.register_forward_hook(
            lambda module, args, output: largest.append(output.abs().max().item())
        )
        drawn.append(Imaginer(pipe, names, synthesis())(torch.tensor([1]), None, [4]).int())
    assert min(largest) > 65504
    assert (drawn[0] - drawn[1]).float().abs().mean() <= 2 and (drawn[0] - drawn[1]).abs().max() <= 10
