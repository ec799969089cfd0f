"""Prompts whose class name is moved by an embedding of its own for every sample, for a text encoder that is trained here."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream.dream.prompts import Prompts, class_prompts, encode
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
def prompts(tokenizer, names) -> Prompts:
    return class_prompts(tokenizer, names, SynthesisSettings(prompt=TEMPLATE))


def encodings(encoder: CLIPTextModel, prompts: Prompts, which: torch.Tensor, moves: torch.Tensor | None):
    """Text encodings (B, L, D), as Stable Diffusion 1 and 2 take them."""
    return encode(encoder, prompts.ids[which], prompts.named[which], moves)[0]


def padded(tokenizer: CLIPTokenizer, text: str) -> torch.Tensor:
    """Token ids (1, L) as Stable Diffusion pipelines make them."""
    return tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids


@pytest.mark.parametrize("template", [TEMPLATE, "{}", "the {} image of the high", "{} of the"])
@pytest.mark.parametrize("name", ["dog", "aquarium fish"])
def test_tokens_and_places(tokenizer, template, name):
    found = class_prompts(tokenizer, [name], SynthesisSettings(prompt=template))
    assert torch.equal(found.ids, padded(tokenizer, template.format(name)))
    assert found.ids[found.named].tolist() == tokenizer(name, add_special_tokens=False).input_ids


def test_too_long(tokenizer):
    settings = SynthesisSettings(prompt="the " * 10 + "{}")
    with pytest.raises(InputError, match=r"dream\.synthesis\.prompt: .* 11 tokens, the generator takes 10"):
        class_prompts(tokenizer, ["dog"], settings)


@torch.no_grad()
def test_each_move_reaches_its_own_row(encoder, prompts):
    which, moves = torch.randint(3, (7,)), torch.randn(7, 16)
    batch = encodings(encoder, prompts, which, moves)
    for row, label, move in zip(batch, which.tolist(), moves):
        # the slow way: a text encoder of its own for every sample, in whose table the name's tokens are moved
        own = copy.deepcopy(encoder)
        ids, named = prompts.ids[label], prompts.named[label]
        for token in set(ids[named].tolist()):
            own.get_input_embeddings().weight.data[token] += move
        assert torch.allclose(row, own(ids[None])[0][0], atol=1e-5)
    assert all(not torch.allclose(batch[i], batch[j], atol=1e-2) for i in range(7) for j in range(i))


@torch.no_grad()
def test_move_reaches_later_tokens(encoder, prompts):
    one, other = encodings(encoder, prompts, torch.tensor([0, 0]), torch.randn(2, 16))
    first = prompts.named[0].int().argmax().item()
    changed = [i for i in range(len(one)) if not torch.allclose(one[i], other[i], atol=1e-4)]
    assert changed == list(range(first, len(one)))  # CLIP is causal: nothing before it, everything after it


@torch.no_grad()
def test_no_move_is_the_plain_prompt_bit_for_bit(tokenizer, encoder, prompts, names):
    which = torch.arange(3)
    plain = encodings(encoder, prompts, which, None)
    assert torch.equal(encodings(encoder, prompts, which, torch.zeros(3, 16)), plain)
    texts = torch.cat([padded(tokenizer, TEMPLATE.format(name)) for name in names])
    assert torch.equal(plain, encoder(texts)[0])


@torch.no_grad()
def test_encoder_is_left_as_it_was(encoder, prompts):
    before = encodings(encoder, prompts, torch.tensor([0]), None)
    encodings(encoder, prompts, torch.tensor([0]), torch.randn(1, 16))
    with pytest.raises((RuntimeError, IndexError)):
        encodings(encoder, prompts, torch.tensor([0]), torch.randn(1, 99))
    assert torch.equal(encodings(encoder, prompts, torch.tensor([0]), None), before)


def test_gradients_flow_to_the_move(encoder, prompts):
    move = torch.randn(1, 16, requires_grad=True)
    encodings(encoder, prompts, torch.tensor([1]), move).square().sum().backward()
    assert move.grad.abs().sum() > 0
