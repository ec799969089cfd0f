"""Prompts whose class token can be replaced by any embedding, one per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import ModelOutput

from openood_dream.dream.settings import SynthesisSettings
from openood_dream.errors import InputError, show


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, padded to the text encoder's length.

    A class name of several tokens is one token here: its first one, to be replaced by the embedding.

    Args:
        ids: token ids (L,).
        position: the place of the class token in `ids`; None for a prompt without a class.
    """

    ids: torch.Tensor
    position: int | None

    @classmethod
    def of(cls, tokenizer: CLIPTokenizer, template: str, name: str) -> Prompt:
        """The prompt of a class, its name as one token.

        Args:
            tokenizer: the tokenizer of the text encoder.
            template: text with {} once, where the class name goes.
            name: the class name.

        Returns:
            The prompt, which knows the place of its class token.

        Raises:
            ValueError: the prompt is too long for the text encoder.
        """
        before, after = template.split("{}")
        head = tokenizer(before, add_special_tokens=False).input_ids
        middle = tokenizer(name, add_special_tokens=False).input_ids
        tail = tokenizer(after, add_special_tokens=False).input_ids
        return cls(_framed(tokenizer, [*head, middle[0], *tail]), 1 + len(head))

    @classmethod
    def plain(cls, tokenizer: CLIPTokenizer, text: str) -> Prompt:
        """An ordinary prompt, for example the negative one.

        Args:
            tokenizer: the tokenizer of the text encoder.
            text: what it says.

        Returns:
            The prompt, which has no class token.

        Raises:
            ValueError: the prompt is too long for the text encoder.
        """
        return cls(_framed(tokenizer, tokenizer(text, add_special_tokens=False).input_ids), None)


def _framed(tokenizer: CLIPTokenizer, ids: list[int]) -> torch.Tensor:
    """Token ids between begin and end, padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    if len(ids) + 2 > length:
        raise ValueError(f"{len(ids)} tokens, the generator takes {length - 2}; shorten the prompt")
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return torch.tensor(ids + [tokenizer.pad_token_id] * (length - len(ids)))


def class_prompts(tokenizer: CLIPTokenizer, names: Sequence[str], settings: SynthesisSettings) -> list[Prompt]:
    """The prompt of every class, its name as one token.

    Args:
        tokenizer: the tokenizer of the text encoder.
        names: the class names in label order.
        settings: the section that has the prompt.

    Returns:
        A prompt for each name.

    Raises:
        InputError: the prompt is too long.
    """
    prompts = []
    for name in names:
        try:
            prompts.append(Prompt.of(tokenizer, settings.prompt, name))
        except ValueError as error:
            raise settings.error("prompt", f"with the class name {name!r}: {error}") from None
    return prompts


def plain_prompts(
    tokenizer: CLIPTokenizer, texts: Sequence[str], settings: SynthesisSettings, key: str = "prompt"
) -> list[Prompt]:
    """Ordinary prompts.

    Args:
        tokenizer: the tokenizer of the text encoder.
        texts: what they say.
        settings: the section that the texts come from.
        key: the key of the section that has them, for messages.

    Returns:
        A prompt for each text.

    Raises:
        InputError: a prompt is too long.
    """
    prompts = []
    for text in texts:
        try:
            prompts.append(Prompt.plain(tokenizer, text))
        except ValueError as error:
            raise settings.error(key, f"{show(text)} has {error}") from None
    return prompts


def fitted_pair(tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A tokenizer and a text encoder that fit each other: prompts are as long as the encoder has places for.

    Args:
        tokenizer: the tokenizer, whose longest prompt may be changed.
        encoder: the text encoder.

    Returns:
        Both.

    Raises:
        InputError: the tokenizer has tokens that the encoder has no embedding of.
    """
    rows, places = token_table(encoder).num_embeddings, encoder.config.max_position_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"dream.generator: the tokenizer has {len(tokenizer)} tokens, the text encoder embeddings of {rows}; expected a "
            "tokenizer and a text encoder that were trained together"
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, places)
    return tokenizer, encoder


def token_table(text_encoder: CLIPTextModel) -> torch.nn.Embedding:
    """The input embedding table (V, m) of a text encoder, whose rows are the anchors."""
    return cast(torch.nn.Embedding, text_encoder.get_input_embeddings())


def token_anchors(table: torch.Tensor, token_ids: Sequence[Sequence[int]], multi_token: str = "mean") -> torch.Tensor:
    """T(y) of every class, from the embedding table.

    Args:
        table: the text encoder's input embedding table (V, m).
        token_ids: the token ids of each of the C class names.
        multi_token: what stands for a name of several tokens: their "mean", the "first" or the "last". The mean is
            rescaled to the mean norm of its tokens: averaging shortens vectors, and a text encoder expects tokens of
            the length that it was trained on.

    Returns:
        The anchors (C, m).
    """
    rows = []
    for ids in token_ids:
        tokens = table[torch.tensor(ids)].float()
        if multi_token == "mean" and len(ids) > 1:
            mean = tokens.mean(0)
            rows.append(mean * (tokens.norm(dim=1).mean() / mean.norm()))
        else:
            rows.append(tokens[-1] if multi_token == "last" else tokens[0])
    return torch.stack(rows)


def encode(
    text_encoder: CLIPTextModel, prompts: list[Prompt], which: torch.Tensor, tokens: torch.Tensor | None, **options: Any
) -> ModelOutput:
    """Encodes prompts, each with an embedding of its own as its class token.

    The embedding takes the token's place before the text transformer (DREAM-OOD, Sec. 3.2), so it is the transformer
    that gives it meaning.

    Args:
        text_encoder: CLIP's text encoder.
        prompts: the prompts to choose from.
        which: the number of each sample's prompt (B,).
        tokens: the embedding of each sample's class token (B, m); None leaves the prompts as they are.
        options: further arguments of the encoder.

    Returns:
        The encoder's output for the B prompts.
    """
    table = token_table(text_encoder)
    device = table.weight.device
    ids = torch.stack([prompt.ids for prompt in prompts]).to(device)[which.to(device)]
    if tokens is None:
        return text_encoder(ids, **options)
    positions = torch.tensor([prompt.position for prompt in prompts], device=device)[which.to(device)]

    def replace(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(output), device=device)
        return output.index_put((rows, positions), tokens.to(device, output.dtype))

    hook = table.register_forward_hook(replace)
    try:
        return text_encoder(ids, **options)
    finally:
        hook.remove()
