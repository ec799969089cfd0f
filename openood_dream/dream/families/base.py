"""What tells one family of diffusion pipelines from another: how it encodes a prompt, and which class loads it.

The pipeline's own `__call__` does the rest, so a family is one small class, registered by `@family`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from openood_dream import plugins
from openood_dream.dream.prompts import Prompt, encode, fitted_pair, token_table


class Family(ABC):
    """A pipeline's text encoders, and how the pipeline takes what they make of prompts.

    Args:
        pipeline: a loaded pipeline of the family.
    """

    text_encoders: ClassVar[tuple[str, ...]]  # the parts of its pipelines that encode text, by which they are known
    loader: ClassVar[type[DiffusionPipeline]]  # the class that loads them
    options: ClassVar[dict[str, Any]] = {}  # how it loads them

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.texts: list[tuple[CLIPTokenizer, CLIPTextModel]] = [
            fitted_pair(getattr(pipeline, part.replace("text_encoder", "tokenizer")), getattr(pipeline, part))
            for part in self.text_encoders
        ]
        self.widths = [token_table(encoder).embedding_dim for _, encoder in self.texts]

    @abstractmethod
    def encode(
        self, prompts: list[list[Prompt]], labels: torch.Tensor, tokens: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What the pipeline takes in place of prompts.

        Args:
            prompts: for each text encoder, a prompt of each class.
            labels: the class of each sample (B,).
            tokens: class tokens (B, m), the embeddings of all encoders one after the other; None leaves the prompts
                as they are.

        Returns:
            Arguments of the pipeline's call, each with B rows, such as `prompt_embeds` (B, L, D).
        """

    def outputs(
        self, prompts: list[list[Prompt]], labels: torch.Tensor, tokens: torch.Tensor | None, **options: Any
    ) -> list[Any]:
        """What each text encoder makes of the prompts.

        Args:
            prompts: as `encode` takes them.
            labels: as `encode` takes them.
            tokens: as `encode` takes them.
            options: further arguments of the encoders.

        Returns:
            An output for each encoder.
        """
        parts = [None] * len(self.texts) if tokens is None else tokens.split(self.widths, dim=1)
        return [
            encode(encoder, own, labels, part, **options)
            for (_, encoder), own, part in zip(self.texts, prompts, parts, strict=True)
        ]


FAMILIES: dict[str, type[Family]] = {}
T = TypeVar("T", bound=type[Family])


def family(name: str) -> Callable[[T], T]:
    """Registers the class of a family of pipelines under its name."""

    def register(cls: T) -> T:
        plugins.add(FAMILIES, "family", name, cls)
        return cls

    return register


def known_family(index: Mapping[str, Any]) -> type[Family] | None:
    """The family of a pipeline by what it consists of, part -> (library, class), as model_index.json says; None: of none."""
    if not all((index.get(part) or (None,))[0] for part in ("unet", "vae", "tokenizer")):
        return None
    filled = sorted(part for part, what in index.items() if part.startswith("text_encoder") and what and what[0])
    return next((cls for cls in FAMILIES.values() if filled == sorted(cls.text_encoders)), None)
