"""Prompts whose class token is an embedding of its own for every sample."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.config import InputError
from openood_dream.prompts import Prompt, conditioning

TEMPLATE = "A high-quality image of the {}"


@pytest.fixture(scope="module")
def tokenizer(pipeline_folder) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(pipeline_folder, subfolder="tokenizer")


@pytest.fixture(scope="module")
def encoder(pipeline_folder) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(pipeline_folder, subfolder="text_encoder").eval()


@pytest.fixture(scope="module")
def prompts(tokenizer, names) -> list[Prompt]:
    return [Prompt.of(tokenizer, TEMPLATE, name) for name in names]


def padded(tokenizer: CLIPTokenizer, text: str) -> torch.Tensor:
    """Token ids (1, L) as Stable Diffusion pipelines make them."""
    return tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids


@pytest.mark.parametrize("template", [TEMPLATE, "{}", "the {} image of the high", "{} of the"])
def test_a_prompt_has_the_tokens_of_its_text_and_knows_where_the_class_is(tokenizer, template):
    prompt = Prompt.of(tokenizer, template, "dog")
    assert torch.equal(prompt.ids, padded(tokenizer, template.format("dog"))[0])
    assert prompt.ids[prompt.position] == tokenizer("dog", add_special_tokens=False).input_ids[0]
    assert (prompt.ids == prompt.ids[prompt.position]).sum() == 1


def test_a_plain_prompt_has_the_tokens_of_its_text(tokenizer):
    for text in ("", "blurry image"):
        assert torch.equal(Prompt.plain(tokenizer, text).ids, padded(tokenizer, text)[0])


def test_a_name_of_several_tokens_takes_one_place(names, prompts):
    fish, dog = prompts[names.index("aquarium fish")], prompts[names.index("dog")]
    assert fish.position == dog.position
    assert torch.equal(fish.ids[fish.position + 1 :], dog.ids[dog.position + 1 :])


def test_a_prompt_that_is_too_long_is_named(tokenizer):
    with pytest.raises(InputError, match=r"dream\.synthesis\.prompt: 11 tokens, the generator takes 10; shorten"):
        Prompt.of(tokenizer, "the " * 10 + "{}", "dog")


@torch.no_grad()
def test_each_samples_embedding_reaches_its_own_row_of_the_batch(tokenizer, encoder, prompts):
    which, tokens = torch.randint(3, (7,)), torch.randn(7, 16)
    batch = conditioning(encoder, prompts, which, tokens)
    for row, label, token in zip(batch, which.tolist(), tokens):
        # the slow way: a text encoder of its own for every sample, in whose table the class token is the embedding
        own = copy.deepcopy(encoder)
        prompt = prompts[label]
        own.get_input_embeddings().weight.data[prompt.ids[prompt.position]] = token
        assert torch.allclose(row, own(prompt.ids[None])[0][0], atol=1e-5)
    assert all(not torch.allclose(batch[i], batch[j], atol=1e-2) for i in range(7) for j in range(i))


@torch.no_grad()
def test_the_embedding_goes_through_the_transformer_and_reaches_later_tokens(encoder, prompts):
    which, tokens = torch.tensor([0, 0]), torch.randn(2, 16)
    one, other = conditioning(encoder, prompts, which, tokens)
    position = prompts[0].position
    changed = [i for i in range(len(one)) if not torch.allclose(one[i], other[i], atol=1e-4)]
    assert changed == list(range(position, len(one)))  # CLIP is causal: nothing before it, everything after it


@torch.no_grad()
def test_the_anchor_itself_is_the_plain_prompt_bit_for_bit(tokenizer, encoder, prompts):
    table = encoder.get_input_embeddings().weight
    which = torch.tensor([0, 2, 2])
    anchors = torch.stack([table[prompts[i].ids[prompts[i].position]] for i in which.tolist()])
    plain = conditioning(encoder, prompts, which, None)
    assert torch.equal(conditioning(encoder, prompts, which, anchors), plain)
    assert torch.allclose(plain[0], encoder(padded(tokenizer, "A high-quality image of the cat"))[0][0], atol=1e-5)


@torch.no_grad()
def test_the_text_encoder_is_left_as_it_was(encoder, prompts):
    before = conditioning(encoder, prompts, torch.tensor([0]), None)
    conditioning(encoder, prompts, torch.tensor([0]), torch.randn(1, 16))
    with pytest.raises((RuntimeError, IndexError)):
        conditioning(encoder, prompts, torch.tensor([0]), torch.randn(1, 99))
    assert torch.equal(conditioning(encoder, prompts, torch.tensor([0]), None), before)


def test_gradients_flow_to_the_embedding(encoder, prompts):
    token = torch.randn(1, 16, requires_grad=True)
    conditioning(encoder, prompts, torch.tensor([1]), token).square().sum().backward()
    assert token.grad.abs().sum() > 0
