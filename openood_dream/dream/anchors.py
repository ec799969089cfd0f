"""Anchors T(y): the token embeddings of the class names, read from a Stable-Diffusion-format text encoder.

T(y) is a row of the text encoder's input embedding table, not the encoder's output (DREAM-OOD, Sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from openood_dream.dream.placeholder import Placeholder
from openood_dream.dream.prompts import token_anchors
from openood_dream.dream.settings import AnchorSettings
from openood_dream.dream.source import Source
from openood_dream.errors import InputError
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import read_tensors, write_tensors


def name_tokens(tokenizer: CLIPTokenizer, names: Sequence[str]) -> list[list[int]]:
    """The token ids of class names, without begin and end.

    Args:
        tokenizer: the generator's tokenizer.
        names: the class names.

    Returns:
        A list of ids for each name.

    Raises:
        ValueError: a name has none.
    """
    ids = [tokenizer(name, add_special_tokens=False).input_ids for name in names]
    for name, tokens in zip(names, ids, strict=True):
        if not tokens:
            raise ValueError(f"the generator's tokenizer has no token for {name!r}; expected a word")
    return ids


def make_anchors(
    source: Source,
    names: Sequence[str],
    settings: AnchorSettings,
    cache_dir: str | Path,
    error: Callable[[str], InputError] = InputError,
    prompt: str = "{}",
) -> Artifact:
    """The anchors stage: `anchors.safetensors` with `anchors` (C, m), and the tokens of each class in the manifest.

    Where a pipeline has two text encoders (Stable Diffusion XL), T(y) is the rows of both tables, one after the other.

    Args:
        source: where tokenizer and text encoder come from.
        names: the C class names.
        settings: `dream.anchors`.
        cache_dir: folder of all artifacts.
        error: makes the error that says a text about the names.
        prompt: the prompt, with {} once, where the class name goes: tokenizers of other families than Stable Diffusion's
            write a name within it otherwise than alone.

    Returns:
        The artifact; `load_anchors` reads it.

    Raises:
        InputError: the source cannot be read, a name has no token, or two names have the same anchor.
    """
    inputs = {"generator": source.identity, "class_names": list(names), "multi_token": settings.multi_token}
    if not source.prepared:
        inputs |= {"prompt": prompt}

    def checked(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except ValueError as wrong:
            raise error(str(wrong)) from None

    def make(folder: Path) -> dict[str, Any]:
        if not source.prepared:
            placeholder = checked(Placeholder, source.text_parts(), prompt, names)
            checked(check_distinct, placeholder.anchors, names)
            write_tensors(folder / "anchors.safetensors", anchors=placeholder.anchors)
            return {"norms": dict(zip(names, placeholder.anchors.norm(dim=1).tolist(), strict=True))}
        parts, tokens = [], {name: list[str]() for name in names}
        for tokenizer, encoder in source.text_parts():
            ids = checked(name_tokens, tokenizer, names)
            embedding: Any = encoder.get_input_embeddings()
            parts.append(token_anchors(embedding.weight.detach().float(), ids, settings.multi_token))
            for name, row in zip(names, ids, strict=True):
                tokens[name] += tokenizer.convert_ids_to_tokens(row)
        anchors = torch.cat(parts, dim=1)
        checked(check_distinct, anchors, names)
        write_tensors(folder / "anchors.safetensors", anchors=anchors)
        return {"tokens": tokens, "norms": dict(zip(names, anchors.norm(dim=1).tolist(), strict=True))}

    return build(cache_dir, "anchors", inputs, make, label=f"{len(names)}classes")


def check_distinct(anchors: torch.Tensor, names: Sequence[str]) -> None:
    """Checks that every class has an anchor of its own.

    Args:
        anchors: T(y) (C, m).
        names: the C class names.

    Raises:
        ValueError: an anchor is zero or not finite, or two classes share one.
    """
    seen: dict[bytes, str] = {}
    for name, anchor in zip(names, anchors.float(), strict=True):
        if not torch.isfinite(anchor).all() or not anchor.any():
            raise ValueError(f"the token embedding of {name!r} is zero or not finite; choose another word")
        other = seen.setdefault(anchor.numpy().tobytes(), name)
        if other != name:
            raise ValueError(
                f"{other!r} and {name!r} have the same token embedding, so no image could be told to be of "
                "one of them; choose other words, or another dream.anchors.multi_token"
            )


def load_anchors(artifact: Artifact) -> torch.Tensor:
    """The anchors (C, m) of an anchors artifact."""
    return read_tensors(artifact.path / "anchors.safetensors", anchors=2)["anchors"]
