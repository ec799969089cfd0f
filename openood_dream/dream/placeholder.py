"""Embeddings in the place of class names, for any text-to-image pipeline: added where its text encoders look tokens up.

The pipeline's own `__call__` tokenises an ordinary prompt, whatever its templates and its number of text encoders. Where
an encoder then looks up the tokens of the class name, v - T(y) is added to each of them, so that the anchor T(y) itself
leaves the plain prompt as it is, for names of several tokens too (DREAM-OOD, Sec. 3.2, for one token and one encoder).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from openood_dream.dream.prompts import mean_token
from openood_dream.dream.tagging import Found, Tagger, untagged
from openood_dream.errors import InputError

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")  # parts of pipelines
ENDLESS = 1 << 30  # what tokenizers without a longest text say that it is, and more


class Encoder:
    """A text encoder of a pipeline, with what it knows the classes by.

    Args:
        tokenizer: its tokenizer.
        module: the encoder.
        templates: class name -> its prompt, with {} once, where the name goes, in label order.

    Attributes:
        found: each class's prompt as the tokenizer writes it.
        anchors: T(y) (C, m) in the table's scale.
        scale: what the part of this encoder is multiplied by in the table's scale.

    Raises:
        ValueError: the tokenizer has no token for a name, or the name of a prompt comes too late in it.
    """

    def __init__(self, tokenizer: Any, module: Any, templates: Mapping[str, str]) -> None:
        self.tagger, self.module = Tagger(tokenizer, templates), module
        table = module.get_input_embeddings()
        shape = table.num_embeddings, table.embedding_dim  # parts of a model share it, under names of their own
        self.tables = [
            part
            for part in module.modules()
            if isinstance(part, nn.Embedding) and (part.num_embeddings, part.embedding_dim) == shape
        ]
        self.found = [self._prompt(template.replace("{}", name), name) for name, template in templates.items()]
        self.anchors = torch.stack([mean_token(rows) for rows in self._rows(table)])
        self.scale = 1.0
        self.width = self.anchors.shape[1]

    @property
    def room(self) -> int | None:
        """The tokens that a prompt may have; None for any number."""
        tokenizer = self.tagger.tokenizer
        if tokenizer.model_max_length > ENDLESS:
            return None
        return tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt."""
        return max(len(one.ids) for one in self.found)

    def _prompt(self, prompt: str, name: str) -> Found:
        found = self.tagger.find(prompt)
        if found is None:
            raise ValueError(f"the generator's tokenizer has no token for {name!r}; expected a word")
        if self.room is not None and found.places.stop > self.room:
            raise ValueError(
                f"{name!r} ends at token {found.places.stop}, the generator takes {self.room}; shorten the prompt"
            )
        return found

    @torch.no_grad()
    def _rows(self, table: nn.Embedding) -> list[torch.Tensor]:
        """The rows (n, m) of each class's name, looked up as the encoder does: with offloading they lie elsewhere."""
        ids = [found.name for found in self.found]
        flat = torch.tensor([number for row in ids for number in row])
        device = table.weight.device
        looked = table(flat if device.type == "meta" else flat.to(device)).float().cpu() / embed_scale(table)
        return list(looked.split([len(row) for row in ids]))


class Placeholder:
    """Class names whose embeddings can be moved, in every text encoder of a pipeline.

    Where there are several text encoders, T(y) has a part of each, divided by the mean length of its anchors: T5's rows are
    some 160 times as long as CLIP's, and a sample would else be T5's alone.

    Args:
        pairs: tokenizers and text encoders.
        templates: class name -> its prompt, with {} once, where the name goes, in label order.

    Raises:
        ValueError: a tokenizer has no token for a name, or no encoder takes a prompt whole.
    """

    def __init__(self, pairs: Sequence[tuple[Any, Any]], templates: Mapping[str, str]) -> None:
        self.names, self.texts = list(templates), [text.replace("{}", name) for name, text in templates.items()]
        self.encoders = [Encoder(tokenizer, module, templates) for tokenizer, module in pairs]
        if all(one.room is not None and one.longest > one.room for one in self.encoders):
            most = max(self.encoders, key=lambda one: one.room or 0)
            raise ValueError(f"{most.longest} tokens, the generator takes {most.room}; shorten the prompt")
        if len(self.encoders) > 1:
            for one in self.encoders:
                one.scale = one.anchors.norm(dim=1).mean().item()
        self.widths = [one.width for one in self.encoders]
        self.anchors = torch.cat([one.anchors / one.scale for one in self.encoders], dim=1)

    def tokens(self) -> dict[str, list[str]]:
        """The tokens of each class's name, as the tokenizers write them within the prompt."""
        return {
            name: [
                word
                for one in self.encoders
                for word in one.tagger.tokenizer.convert_ids_to_tokens(one.found[label].name)
            ]
            for label, name in enumerate(self.names)
        }

    def prompts(self, labels: torch.Tensor) -> list[str]:
        """The prompt of each sample, by its class (B,)."""
        return [self.texts[label] for label in labels.tolist()]

    @contextmanager
    def replaced(self, labels: torch.Tensor, tokens: torch.Tensor | None) -> Iterator[None]:
        """Within the block, the i-th prompt with a class name that an encoder looks up has the i-th embedding for it.

        Gradients flow to the tokens.

        Args:
            labels: class labels (B,).
            tokens: class tokens (B, m), the parts of all encoders one after the other; None changes nothing.

        Raises:
            InputError: the class names did not come to an encoder.
        """
        if tokens is None:
            yield
            return
        parts = [part.split(self.widths, dim=1) for part in (tokens.cpu().float(), self.anchors[labels.cpu()])]
        writers = [_Writer(one, *pair) for one, *pair in zip(self.encoders, *parts, strict=True)]
        with ExitStack() as stack:
            for writer in writers:
                stack.enter_context(writer.writing())
            yield
        if any(writer.count == 0 or writer.count % len(labels) for writer in writers):
            raise InputError(
                "dream.generator: the class names of the prompts do not come to the pipeline's text encoders as its "
                "tokenizers write them; shorten dream.synthesis.prompt, or write names as the pipeline does"
            )


class _Writer:
    """Adds moves to the tokens of class names that an encoder looks up, sample by sample in the order of the prompts.

    Args:
        encoder: the encoder.
        tokens: the samples' part of it (B, m).
        anchors: that of their classes (B, m).
    """

    def __init__(self, encoder: Encoder, tokens: torch.Tensor, anchors: torch.Tensor) -> None:
        self.encoder, self.count = encoder, 0
        self.named: torch.Tensor | None = None  # where the ids that the encoder is at have tags
        moves = tokens - anchors
        # what is less than the table can tell is none: anchors were computed from weights of another number format
        least = torch.finfo(next(encoder.module.parameters()).dtype).eps * anchors.norm(dim=1, keepdim=True)
        none = moves - moves.detach()  # gradients flow nevertheless
        self.moves = torch.where(moves.norm(dim=1, keepdim=True) > least, moves, none) * encoder.scale

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block the encoder's tokenizer tags names, and its tables are hooked."""
        with ExitStack() as stack:
            stack.enter_context(self.encoder.tagger.tagging())
            # ids lose their tags where the encoder is called; where a part of it is called, at the table
            for module in dict.fromkeys([self.encoder.module, *self.encoder.tables]):
                stack.callback(module.register_forward_pre_hook(self._untag, with_kwargs=True).remove)
            for table in self.encoder.tables:
                stack.callback(table.register_forward_hook(self._add).remove)
            yield

    def _untag(self, module: nn.Module, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        key: Any = "input_ids" if "input_ids" in options else 0
        given = options.get("input_ids", args[0] if args else None)
        if not isinstance(given, torch.Tensor) or given.dtype is not torch.int64:
            return args, options
        ids, named = untagged(given)
        if named.any():
            self.named = named
        return (args, options | {key: ids}) if key else ((ids, *args[1:]), options)

    def _add(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        named, self.named = self.named, None
        if named is None or named.numel() != output[..., 0].numel():
            return output
        named = named.reshape(-1, named.shape[-1])
        rows = named.any(1).nonzero().flatten().cpu()  # the others are other prompts, such as the negative one
        moves = torch.zeros(len(named), self.moves.shape[1])
        samples = (self.count + torch.arange(len(rows))) % len(self.moves)
        moves = moves.index_put((rows,), self.moves[samples]) * embed_scale(module)
        self.count += len(rows)
        flat = output.reshape(*named.shape, -1)
        moved = torch.where(named.unsqueeze(-1), flat + moves.unsqueeze(1).to(output), flat)
        return moved.reshape(output.shape)


def embed_scale(table: nn.Module) -> float:
    """What an embedding module multiplies its rows by, as Gemma's does."""
    return float(getattr(table, "embed_scale", 1.0))


def text_pairs(pipeline: Any) -> list[tuple[Any, Any]]:
    """The tokenizers and text encoders of a pipeline, in their order, fitted to each other.

    Args:
        pipeline: the pipeline.

    Raises:
        InputError: a tokenizer has tokens that its encoder has no embedding of.
    """
    found = []
    for part in TEXT_ENCODERS:
        encoder = getattr(pipeline, part, None)
        tokenizer = getattr(pipeline, tokenizer_of(part), None)
        if encoder is not None and tokenizer is not None:
            found.append(fitted(tokenizer, encoder))
    return found


def tokenizer_of(part: str) -> str:
    """The name of the tokenizer of a pipeline's text encoder, by that of the encoder.

    Args:
        part: one of TEXT_ENCODERS.
    """
    return part.replace("text_encoder", "tokenizer")


def fitted(tokenizer: Any, encoder: Any) -> tuple[Any, Any]:
    """A tokenizer and a text encoder that fit each other: prompts are no longer than the encoder has places for.

    Args:
        tokenizer: the tokenizer, or a processor that has one; its longest prompt may be changed.
        encoder: the text encoder.

    Returns:
        Both.

    Raises:
        InputError: the tokenizer has tokens that the encoder has no embedding of.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    rows = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"dream.generator: the tokenizer has {len(tokenizer)} tokens, the text encoder embeddings of {rows}; expected a "
            "tokenizer and a text encoder that were trained together"
        )
    places = getattr(encoder.config, "max_position_embeddings", None)
    if places is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, places)
    return tokenizer, encoder
