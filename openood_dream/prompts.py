"""Prompts whose class token can be replaced by any embedding, one per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from openood_dream.config import InputError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import ModelOutput


@dataclass(frozen=True)
class Prompt:
    """Token ids (L,) of a prompt and the `position` of its class token, None for a prompt without a class.

    A class name of several tokens is one token here: its first one, to be replaced by the embedding.
    """

    ids: torch.Tensor
    position: int | None

    @classmethod
    def of(cls, tokenizer: CLIPTokenizer, template: str, name: str) -> Prompt:
        """The prompt `template.format(name)` with the name as one token; InputError where it is too long."""
        before, after = template.split("{}")
        head = tokenizer(before, add_special_tokens=False).input_ids
        middle = tokenizer(name, add_special_tokens=False).input_ids
        tail = tokenizer(after, add_special_tokens=False).input_ids
        return cls(_framed(tokenizer, [*head, middle[0], *tail]), 1 + len(head))

    @classmethod
    def plain(cls, tokenizer: CLIPTokenizer, text: str, key: str = "prompt") -> Prompt:
        """An ordinary prompt, for example the negative one; messages name the `key` of dream.synthesis that has it."""
        return cls(_framed(tokenizer, tokenizer(text, add_special_tokens=False).input_ids, key), None)


def _framed(tokenizer: CLIPTokenizer, ids: list[int], key: str = "prompt") -> torch.Tensor:
    length = tokenizer.model_max_length
    if len(ids) + 2 > length:
        raise InputError(
            f"dream.synthesis.{key}: {len(ids)} tokens, the generator takes {length - 2}; shorten the prompt"
        )
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return torch.tensor(ids + [tokenizer.pad_token_id] * (length - len(ids)))


def encode(
    text_encoder: CLIPTextModel, prompts: list[Prompt], which: torch.Tensor, tokens: torch.Tensor | None, **options: Any
) -> ModelOutput:
    """The text encoder's output for the prompts `which` (B,), each with its row of `tokens` (B, m) as its class token.

    The embedding takes the token's place before the text transformer (DREAM-OOD, Sec. 3.2), so it is the transformer
    that gives it meaning. `tokens` None leaves the prompts as they are, and `options` go to the encoder.
    """
    table = text_encoder.get_input_embeddings()
    device = table.weight.device
    ids = torch.stack([prompt.ids for prompt in prompts]).to(device)[which.to(device)]
    if tokens is None:
        return text_encoder(ids, **options)
    positions = torch.tensor([prompt.position for prompt in prompts], device=device)[which.to(device)]

    def replace(module, args, output: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(output), device=device)
        return output.index_put((rows, positions), tokens.to(device, output.dtype))

    hook = table.register_forward_hook(replace)
    try:
        return text_encoder(ids, **options)
    finally:
        hook.remove()


def conditioning(
    text_encoder: CLIPTextModel, prompts: list[Prompt], which: torch.Tensor, tokens: torch.Tensor | None
) -> torch.Tensor:
    """Text encodings (B, L, D) of `encode`, as Stable Diffusion 1 and 2 take them."""
    return encode(text_encoder, prompts, which, tokens)[0]
