"""A pipeline whose parts do not fit, or a scheduler that cannot take the steps, is found before anything long."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.dream.parts import check_parts, check_steps
from openood_dream.dream.placeholder import fitted
from openood_dream.dream.prompts import class_prompts
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError


def synthesis(**changes) -> SynthesisSettings:
    return SynthesisSettings(**{"steps": 3, "size": 16, "save_size": None} | changes)


@pytest.fixture
def changed(pipeline_folder, tmp_path):
    """A copy of a pipeline with a key of a part's config changed."""

    def change(part: str, **keys) -> Source:
        folder = tmp_path / "pipeline"
        shutil.copytree(pipeline_folder, folder)
        file = next(folder.glob(f"{part}/*config.json"))
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))
        return Source(str(folder), None, None)

    return change


def test_parts_that_fit(pipeline_folder):
    check_parts(Source(str(pipeline_folder), None, None), synthesis())


@pytest.mark.parametrize(
    "part, keys, words",
    [
        ("unet", {"in_channels": 9}, "a pipeline for inpainting: its unet takes 9 channels"),
        ("unet", {"in_channels": 8}, "a pipeline for editing images"),
        ("vae", {"latent_channels": 16}, "its vae's latents have 16"),
        ("unet", {"cross_attention_dim": 768}, "its unet takes text of 768 numbers a token"),
    ],
)
def test_parts_that_do_not_fit(changed, part, keys, words):
    with pytest.raises(InputError, match=rf"^dream\.generator: .*{words}"):
        check_parts(changed(part, **keys), synthesis())


@pytest.mark.parametrize(
    "scheduler, steps", [("lcm", 51), ("ddim", 1000), ("ddim", 1001), ("pndm", 1001), ("own", 1001)]
)
def test_more_steps_than_a_scheduler_takes(pipeline_folder, scheduler, steps):
    with pytest.raises(
        InputError, match=rf"dream\.synthesis\.steps: {steps} are too many for the scheduler {scheduler}"
    ):
        check_parts(Source(str(pipeline_folder), None, None), synthesis(scheduler=scheduler, steps=steps))


@pytest.mark.parametrize(
    "scheduler, steps", [("lcm", 50), ("ddim", 500), ("dpmsolver++", 50), ("euler", 1000), ("pndm", 50)]
)
def test_steps_that_a_scheduler_takes(pipeline_folder, scheduler, steps):
    config = Source(str(pipeline_folder), None, None).config("scheduler")
    check_steps("PNDMScheduler", config, synthesis(scheduler=scheduler, steps=steps))


def test_steps_are_checked_before_the_space_is_made(command, tiny, tmp_path):
    done = command(
        "imagine",
        "--config",
        tiny.file,
        "--root",
        tmp_path / "new",
        "--dream.synthesis.scheduler",
        "lcm",
        "--dream.synthesis.steps",
        "51",
    )
    assert done.code == 2 and "dream.synthesis.steps: 51 are too many" in done.err[-1]
    assert not list((tmp_path / "new").rglob("space-*"))


def text_parts(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    return tokenizer, CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")


def test_prompts_are_as_long_as_the_text_encoder_has_places(pipeline_folder):
    tokenizer, encoder = text_parts(pipeline_folder)
    places = encoder.config.max_position_embeddings
    for length in (int(1e30), places + 5):  # the first is what a tokenizer has that was saved without a length
        tokenizer.model_max_length = length
        assert fitted(tokenizer, encoder)[0].model_max_length == places


def test_tokens_beyond_the_table(pipeline_folder):
    tokenizer, encoder = text_parts(pipeline_folder)
    encoder.set_input_embeddings(torch.nn.Embedding(3, 16))
    with pytest.raises(
        InputError, match=r"dream\.generator: the tokenizer has \d+ tokens, the text encoder embeddings of 3"
    ):
        fitted(tokenizer, encoder)


def test_a_prompt_that_is_too_long_names_its_class(pipeline_folder):
    tokenizer, _ = text_parts(pipeline_folder)
    with pytest.raises(InputError, match=r"dream\.synthesis\.prompt: with the class name 'cat': \d+ tokens"):
        class_prompts(tokenizer, ["cat"], synthesis(prompt="cat " * 20 + "{}"))
