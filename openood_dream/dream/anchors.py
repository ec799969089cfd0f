"""Anchors T(y): the token embeddings of the class names, read from a Stable-Diffusion-format text encoder.

T(y) is a row of the text encoder's input embedding table, not the encoder's output (DREAM-OOD, Sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from openood_dream.dream.placeholder import Placeholder
from openood_dream.dream.source import Source
from openood_dream.errors import InputError
from openood_dream.store.artifacts import Artifact, build
from openood_dream.store.tensors import read_tensors, write_tensors


def make_anchors(
    source: Source,
    templates: Mapping[str, str],
    cache_dir: str | Path,
    error: Callable[[str], InputError] = InputError,
) -> Artifact:
    """The anchors stage: `anchors.safetensors` with `anchors` (C, m), and the tokens of each class in the manifest.

    T(y) of a name of several tokens is their mean, rescaled; where a pipeline has several text encoders, it has a part of each
    (placeholder.py).

    Args:
        source: where tokenizer and text encoder come from.
        templates: class name -> its prompt, with {} once, where the name goes, in label order: some tokenizers write a name
            within it otherwise than alone.
        cache_dir: folder of all artifacts.
        error: makes the error that says a text about the names.

    Returns:
        The artifact; `load_anchors` reads it.

    Raises:
        InputError: the source cannot be read, a name has no token, or two names have the same anchor.
    """
    names = list(templates)
    inputs = {"generator": source.text_identity, "class_names": names}
    if not source.writes_alike:
        inputs["prompts"] = list(templates.values())

    def make(folder: Path) -> dict[str, Any]:
        try:
            placeholder = Placeholder(source.text_parts(), templates)
            check_distinct(placeholder.anchors, names)
        except ValueError as wrong:
            raise wrong if isinstance(wrong, InputError) else error(str(wrong)) from None
        anchors = placeholder.anchors
        write_tensors(folder / "anchors.safetensors", anchors=anchors)
        norms = anchors.norm(dim=1).tolist()
        return {"tokens": placeholder.tokens(), "norms": dict(zip(names, norms, strict=True))}

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
                "one of them; choose other words"
            )


def load_anchors(artifact: Artifact) -> torch.Tensor:
    """The anchors (C, m) of an anchors artifact."""
    return read_tensors(artifact.path / "anchors.safetensors", anchors=2)["anchors"]
