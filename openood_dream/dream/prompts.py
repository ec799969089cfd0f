"""Prompts whose class name can be moved by any embedding, one per sample, for a text encoder that is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import ModelOutput

from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.tagging import Tagger, untagged


@dataclass(frozen=True)
class Prompts:
    """The prompts of all classes as token ids, padded to the text encoder's length, as a pipeline's call makes them.

    Args:
        ids: token ids (C, L).
        named: which of them are tokens of the class's name (C, L).
        empty: those of the empty prompt (L,).
    """

    ids: torch.Tensor
    named: torch.Tensor
    empty: torch.Tensor


def class_prompts(tokenizer: CLIPTokenizer, names: Sequence[str], settings: SynthesisSettings) -> Prompts:
    """The prompt of every class, and the empty one.

    Args:
        tokenizer: the tokenizer of the text encoder.
        names: the class names in label order.
        settings: the section that has the prompt.

    Raises:
        InputError: the prompt is too long.
    """
    templates = settings.templates(names)
    texts = [template.replace("{}", name) for name, template in templates.items()]
    longest, room = tokenizer.model_max_length, tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    for text, name in zip(texts, names, strict=True):
        count = len(tokenizer(text, add_special_tokens=False).input_ids)
        if count > room:
            raise settings.error(
                "prompt",
                f"with the class name {name!r}: {count} tokens, the generator takes {room}; shorten the prompt",
            )
    with Tagger(tokenizer, templates).tagging():
        found = tokenizer([*texts, ""], padding="max_length", max_length=longest, return_tensors="pt")
    ids, named = untagged(found.input_ids)
    return Prompts(ids[:-1], named[:-1], ids[-1])


def mean_token(rows: torch.Tensor) -> torch.Tensor:
    """T(y) of a class name, from the text encoder's embedding table.

    Args:
        rows: the rows (n, m) of the name's tokens.

    Returns:
        Their mean (m,), rescaled to the mean norm of the rows: averaging shortens vectors, and a text encoder expects
        tokens of the length that it was trained on.
    """
    mean = rows.mean(0)
    return rows[0] if len(rows) == 1 else mean * (rows.norm(dim=1).mean() / mean.norm())


def encode(
    text_encoder: CLIPTextModel, ids: torch.Tensor, named: torch.Tensor, moves: torch.Tensor | None, **options: Any
) -> ModelOutput:
    """Encodes prompts, with an embedding of its own added to the tokens of each class name.

    The embedding is added before the text transformer (DREAM-OOD, Sec. 3.2), so it is the transformer that gives it
    meaning. placeholder.py does the same within a pipeline's call.

    Args:
        text_encoder: CLIP's text encoder.
        ids: token ids (B, L).
        named: which of them are tokens of a class name (B, L).
        moves: v - T(y) of each sample (B, m); None leaves the prompts as they are.
        options: further arguments of the encoder.

    Returns:
        The encoder's output for the B prompts.
    """
    if moves is None:
        return text_encoder(ids, **options)

    def add(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.where(named.unsqueeze(-1), output + moves.unsqueeze(1).to(output), output)

    hook = text_encoder.get_input_embeddings().register_forward_hook(add)
    try:
        return text_encoder(ids, **options)
    finally:
        hook.remove()
