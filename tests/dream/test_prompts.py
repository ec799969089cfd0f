"""Prompts whose class token is an embedding of its own for every sample."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.dream.prompts import Prompt, class_prompts, encode, plain_prompts
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.errors import InputError

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


def encodings(encoder: CLIPTextModel, *prompts) -> torch.Tensor:
    """Text encodings (B, L, D), as Stable Diffusion 1 and 2 take them."""
    return encode(encoder, *prompts)[0]


def padded(tokenizer: CLIPTokenizer, text: str) -> torch.Tensor:
    """Token ids (1, L) as Stable Diffusion pipelines make them."""
    return tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids


@pytest.mark.parametrize("template", [TEMPLATE, "{}", "the {} image of the high", "{} of the"])
def test_tokens_and_position(tokenizer, template):
    prompt = Prompt.of(tokenizer, template, "dog")
    assert torch.equal(prompt.ids, padded(tokenizer, template.format("dog"))[0])
    assert prompt.ids[prompt.position] == tokenizer("dog", add_special_tokens=False).input_ids[0]
    assert (prompt.ids == prompt.ids[prompt.position]).sum() == 1


def test_plain_tokens(tokenizer):
    for text in ("", "blurry image"):
        assert torch.equal(Prompt.plain(tokenizer, text).ids, padded(tokenizer, text)[0])


def test_name_of_several_tokens_takes_one_place(names, prompts):
    fish, dog = prompts[names.index("aquarium fish")], prompts[names.index("dog")]
    assert fish.position == dog.position
    assert torch.equal(fish.ids[fish.position + 1 :], dog.ids[dog.position + 1 :])


def test_too_long(tokenizer):
    with pytest.raises(ValueError, match=r"11 tokens, the generator takes 10"):
        Prompt.of(tokenizer, "the " * 10 + "{}", "dog")
    settings = SynthesisSettings(prompt="the " * 10 + "{}", negative_prompt="the " * 11)
    with pytest.raises(InputError, match=r"dream\.synthesis\.prompt: "):
        class_prompts(tokenizer, ["dog"], settings)
    with pytest.raises(InputError, match=r"dream\.synthesis\.negative_prompt: "):
        plain_prompts(tokenizer, [settings.negative_prompt], settings, "negative_prompt")


@torch.no_grad()
def test_each_embedding_reaches_its_own_row(tokenizer, encoder, prompts):
    which, tokens = torch.randint(3, (7,)), torch.randn(7, 16)
    batch = encodings(encoder, prompts, which, tokens)
    for row, label, token in zip(batch, which.tolist(), tokens):
        # the slow way: a text encoder of its own for every sample, in whose table the class token is the embedding
        own = copy.deepcopy(encoder)
        prompt = prompts[label]
        own.get_input_embeddings().weight.data[prompt.ids[prompt.position]] = token
        assert torch.allclose(row, own(prompt.ids[None])[0][0], atol=1e-5)
    assert all(not torch.allclose(batch[i], batch[j], atol=1e-2) for i in range(7) for j in range(i))


@torch.no_grad()
def test_embedding_reaches_later_tokens(encoder, prompts):
    which, tokens = torch.tensor([0, 0]), torch.randn(2, 16)
    one, other = encodings(encoder, prompts, which, tokens)
    position = prompts[0].position
    changed = [i for i in range(len(one)) if not torch.allclose(one[i], other[i], atol=1e-4)]
    assert changed == list(range(position, len(one)))  # CLIP is causal: nothing before it, everything after it


@torch.no_grad()
def test_anchor_is_the_plain_prompt_bit_for_bit(tokenizer, encoder, prompts):
    table = encoder.get_input_embeddings().weight
    which = torch.tensor([0, 2, 2])
    anchors = torch.stack([table[prompts[i].ids[prompts[i].position]] for i in which.tolist()])
    plain = encodings(encoder, prompts, which, None)
    assert torch.equal(encodings(encoder, prompts, which, anchors), plain)
    assert torch.allclose(plain[0], encoder(padded(tokenizer, "A high-quality image of the cat"))[0][0], atol=1e-5)


@torch.no_grad()
def test_encoder_is_left_as_it_was(encoder, prompts):
    before = encodings(encoder, prompts, torch.tensor([0]), None)
    encodings(encoder, prompts, torch.tensor([0]), torch.randn(1, 16))
    with pytest.raises((RuntimeError, IndexError)):
        encodings(encoder, prompts, torch.tensor([0]), torch.randn(1, 99))
    assert torch.equal(encodings(encoder, prompts, torch.tensor([0]), None), before)


def test_gradients_flow_to_the_embedding(encoder, prompts):
    token = torch.randn(1, 16, requires_grad=True)
    encodings(encoder, prompts, torch.tensor([1]), token).square().sum().backward()
    assert token.grad.abs().sum() > 0
