"""How a pipeline is told what to draw: by prompt embeddings that are made here, or by prompts with a placeholder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from diffusers import DiffusionPipeline

from openood_dream.dream.families.base import Family
from openood_dream.dream.placeholder import NotFound, Placeholder
from openood_dream.dream.prompts import Prompt, class_prompts, plain_prompts, token_table
from openood_dream.dream.settings import SynthesisSettings


class Prepared:
    """Prompt embeddings of our making, for pipelines of a known family: the negative one is encoded once.

    Args:
        family: the pipeline's family.
        pipeline: the pipeline.
        names: the class names in label order.
        settings: the prompts.
    """

    def __init__(
        self, family: Family, pipeline: DiffusionPipeline, names: Sequence[str], settings: SynthesisSettings
    ) -> None:
        self.family, self.settings = family, settings
        tokenizers = [tokenizer for tokenizer, _ in family.texts]
        words = [settings.prompt.format(name) for name in names]
        self.prompts = [class_prompts(tokenizer, names, settings) for tokenizer in tokenizers]
        self.words = [plain_prompts(tokenizer, words, settings) for tokenizer in tokenizers]
        # distilled pipelines take the guidance scale as an input, and have no unconditional half
        guided = settings.guidance > 1 and pipeline.unet.config.time_cond_proj_dim is None
        self.negative = self._negative(pipeline) if guided else {}
        self.widths = family.widths

    @torch.inference_mode()
    def _negative(self, pipeline: DiffusionPipeline) -> dict[str, torch.Tensor]:
        """The encoding (1, ...) of the negative prompt, which is the same for every image of a run."""
        text = self.settings.negative_prompt
        prompts: list[list[Prompt]] = [
            plain_prompts(tokenizer, [text], self.settings, "negative_prompt") for tokenizer, _ in self.family.texts
        ]
        encoded = self.family.encode(prompts, torch.zeros(1, dtype=torch.long), None)
        if not text and pipeline.config.get("force_zeros_for_empty_prompt"):
            encoded = {name: torch.zeros_like(tensor) for name, tensor in encoded.items()}
        return {f"negative_{name}": tensor for name, tensor in encoded.items()}

    def arguments(self, labels: torch.Tensor, tokens: torch.Tensor | None) -> dict[str, Any]:
        """Arguments of the pipeline's call, for class labels (B,) and tokens (B, m), or None for plain prompts."""
        text = self.family.encode(self.words if tokens is None else self.prompts, labels, tokens)
        negative = {name: tensor.expand(len(labels), *tensor.shape[1:]) for name, tensor in self.negative.items()}
        return text | negative

    def draw(self, call: Callable[..., Any], labels: torch.Tensor, tokens: torch.Tensor | None) -> Any:
        """What `call` returns, given the arguments for class labels (B,) and tokens (B, m), or None for plain prompts."""
        return call(**self.arguments(labels, tokens))

    def random_rows(self) -> torch.Tensor:
        """A token (m,) that is as long as tokens are."""
        return torch.cat([token_table(encoder).weight[-1] for _, encoder in self.family.texts])


class Hooked:
    """Ordinary prompts, whose class names the text encoders look up with an embedding added: for any pipeline.

    Args:
        pipeline: the pipeline.
        names: the class names in label order.
        settings: the prompts.
    """

    def __init__(self, pipeline: DiffusionPipeline, names: Sequence[str], settings: SynthesisSettings) -> None:
        try:
            self.placeholder = Placeholder(text_pairs(pipeline), settings.prompt, names)
        except ValueError as error:
            raise settings.error("prompt", str(error)) from None
        self.widths = self.placeholder.widths
        self.negative = {"negative_prompt": settings.negative_prompt} if settings.negative_prompt else {}

    def arguments(self, labels: torch.Tensor, tokens: torch.Tensor | None) -> dict[str, Any]:
        """Arguments of the pipeline's call, for class labels (B,); tokens come in where names are looked up."""
        negative = {name: [text] * len(labels) for name, text in self.negative.items()}
        return {"prompt": self.placeholder.prompts(labels)} | negative

    def draw(self, call: Callable[..., Any], labels: torch.Tensor, tokens: torch.Tensor | None) -> Any:
        """What `call` returns, given the prompts of class labels (B,), with tokens (B, m) for their names, unless None."""
        while True:
            with suppress(NotFound), self.placeholder.replaced(labels, tokens):
                return call(**self.arguments(labels, tokens))

    def random_rows(self) -> torch.Tensor:
        """A token (m,) that is as long as tokens are."""
        return self.placeholder.anchors[0]


def text_pairs(pipeline: Any) -> list[tuple[Any, Any]]:
    """The tokenizers and text encoders of a pipeline, in their order."""
    parts = [part for part in ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")]
    found = [
        (getattr(pipeline, part.replace("text_encoder", "tokenizer"), None), getattr(pipeline, part, None))
        for part in parts
    ]
    return [(tokenizer, encoder) for tokenizer, encoder in found if tokenizer is not None and encoder is not None]
