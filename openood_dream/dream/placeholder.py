"""Embeddings in the place of class names, for any text-to-image pipeline: added where its text encoders look tokens up.

The pipeline's own `__call__` tokenises an ordinary prompt, whatever its templates and its number of text encoders. Where
an encoder then looks up the tokens of the class name, v - T(y) is added to each of them, so that the anchor T(y) itself
leaves the plain prompt as it is, for names of several tokens too (DREAM-OOD, Sec. 3.2, for one token and one encoder).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from openood_dream.dream.prompts import token_anchors
from openood_dream.errors import InputError

WAYS = 4  # in which a class name is looked for: in the whole prompt, as written and in lower case, then alone


@dataclass(frozen=True)
class Pattern:
    """Token ids by which the class name is found in what an encoder gets.

    Args:
        ids: token ids that stand there in this order.
        start: the place of the name's first token among them.
        length: how many tokens the name has.
    """

    ids: list[int]
    start: int
    length: int

    def find(self, row: list[int]) -> range | None:
        """The places of the name's tokens in a row of ids: the last ones, if there are any."""
        size = len(self.ids)
        for at in range(len(row) - size, -1, -1):
            if row[at : at + size] == self.ids:
                return range(at + self.start, at + self.start + self.length)
        return None


def patterns(tokenizer: Any, template: str, name: str) -> list[Pattern]:
    """The WAYS in which the name may be found, the surest one first.

    Pipelines put prompts into templates of their own, and some write them in lower case.

    Args:
        tokenizer: of a text encoder.
        template: the prompt, with {} once, where the class name goes.
        name: the class name.

    Raises:
        ValueError: the tokenizer has no token for it.
    """
    whole, alone = list[Pattern](), list[Pattern]()
    for lower in (False, True):
        words, own = (text.lower() if lower else text for text in (template, name))
        ids, places = name_places(tokenizer, words, own)
        if not places:
            raise ValueError(f"the generator's tokenizer has no token for {own!r}; expected a word")
        whole.append(Pattern(ids, places.start, len(places)))
        alone.append(Pattern(ids[places.start : places.stop], 0, len(places)))
    return [*whole, *alone]


def name_places(tokenizer: Any, template: str, name: str) -> tuple[list[int], range]:
    """The token ids of a prompt, without begin and end, and the places of the class name's among them.

    Args:
        tokenizer: of a text encoder.
        template: the prompt, with {} once, where the class name goes.
        name: the class name.
    """
    start = template.index("{}")
    prompt = template.replace("{}", name)
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        spans, end = found.offset_mapping, start + len(name)
        inside = [i for i, (left, right) in enumerate(spans) if left < end and right > start and right > left]
        return list(found.input_ids), range(inside[0], inside[-1] + 1) if inside else range(0)
    ids, before = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, prompt[:start]))
    tail = (
        tokenizer(prompt[start + len(name) :], add_special_tokens=False).input_ids
        if prompt[start + len(name) :]
        else []
    )
    return list(ids), range(len(before), len(ids) - len(tail))


@dataclass
class Encoder:
    """A text encoder of a pipeline, with what it knows the classes by.

    Args:
        modules: those of its modules that look tokens up in its input embedding table, which they may share.
        found: the patterns of each class's name.
        anchors: T(y) (C, m) in the table's scale.
        scale: what the part of this encoder is multiplied by in the table's scale.
        way: which of the WAYS its class names are found in.
    """

    modules: list[nn.Embedding]
    found: list[list[Pattern]]
    anchors: torch.Tensor
    scale: float = 1.0
    way: int = 0


class NotFound(Exception):
    """The class names are to be looked for in another way, from the beginning."""


@dataclass
class _Written:
    """How many prompts a hook has written into in one call of the pipeline."""

    count: int = 0


class Placeholder:
    """Class names whose embeddings can be moved, in every text encoder of a pipeline.

    Where there are several text encoders, T(y) has a part of each, divided by the mean length of its anchors: T5's rows are
    some 160 times as long as CLIP's, and a sample would else be T5's alone.

    Args:
        pairs: tokenizers and text encoders.
        template: the prompt, with {} once, where the class name goes.
        names: the class names in label order.

    Raises:
        ValueError: a tokenizer has no token for a name.
    """

    def __init__(self, pairs: Sequence[tuple[Any, Any]], template: str, names: Sequence[str]) -> None:
        self.template, self.names = template, list(names)
        self.encoders = [_encoder(tokenizer, encoder, template, names) for tokenizer, encoder in pairs]
        if len(self.encoders) > 1:
            for one in self.encoders:
                one.scale = one.anchors.norm(dim=1).mean().item()
        self.widths = [one.anchors.shape[1] for one in self.encoders]
        self.anchors = torch.cat([one.anchors / one.scale for one in self.encoders], dim=1)

    def prompts(self, labels: torch.Tensor) -> list[str]:
        """The prompt of each sample, by its class (B,)."""
        return [self.template.replace("{}", self.names[label]) for label in labels.tolist()]

    @contextmanager
    def replaced(self, labels: torch.Tensor, tokens: torch.Tensor | None) -> Iterator[None]:
        """Within the block, the i-th prompt with a class name that an encoder looks up has the i-th embedding for it.

        Where an encoder was not given the names in the way that they were looked for, another way is taken from then on.

        Args:
            labels: class labels (B,).
            tokens: class tokens (B, m), the parts of all encoders one after the other; None changes nothing.

        Raises:
            NotFound: names were not found, and there is another way to look for them.
            InputError: there is none.
        """
        if tokens is None:
            yield
            return
        written = []
        with ExitStack() as stack:
            moves = (tokens.cpu() - self.anchors[labels.cpu()].to(tokens.dtype)).split(self.widths, dim=1)
            for one, move in zip(self.encoders, moves, strict=True):
                state = _Written()
                written.append(state)
                hook = _mover([one.found[label][one.way] for label in labels.tolist()], move * one.scale, state)
                for module in one.modules:
                    stack.callback(module.register_forward_hook(hook).remove)
            yield
        lost = [one for one, state in zip(self.encoders, written) if state.count == 0 or state.count % len(labels)]
        for one in lost:
            one.way += 1
        if any(one.way == WAYS for one in lost):
            raise InputError(
                "dream.generator: the class names of the prompts do not come to the pipeline's text encoders as their "
                "tokenizers write them; shorten dream.synthesis.prompt, or write names as the pipeline does"
            )
        if lost:
            raise NotFound


def _encoder(tokenizer: Any, encoder: Any, template: str, names: Sequence[str]) -> Encoder:
    """A text encoder with patterns and anchors of the classes."""
    table = encoder.get_input_embeddings().weight
    modules = [part for part in encoder.modules() if isinstance(part, nn.Embedding) and part.weight is table]
    found = [patterns(tokenizer, template, name) for name in names]
    ids = [first.ids[first.start : first.start + first.length] for first, *_ in found]
    return Encoder(modules, found, token_anchors(table.detach(), ids).cpu())


def _mover(found: Sequence[Pattern], moves: torch.Tensor, state: _Written) -> Callable[..., torch.Tensor]:
    """A hook of an embedding module that adds each sample's move to the tokens of its class name."""

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        ids = args[0]
        rows = ids.reshape(-1, ids.shape[-1]).tolist()
        where: list[tuple[int, int, int]] = []  # row, place, sample
        for number, row in enumerate(rows):
            sample = state.count % len(found)
            places = found[sample].find(row)
            if places is not None:  # else it is another prompt, such as the negative one
                where += [(number, place, sample) for place in places]
                state.count += 1
        if not where:
            return output
        row_index, places_index, samples = (torch.tensor(column) for column in zip(*where))
        # Gemma scales its rows inside the module
        added = (moves[samples] * float(getattr(module, "embed_scale", 1.0))).to(output)
        flat = output.reshape(len(rows), ids.shape[-1], -1)
        cells = (row_index.to(output.device), places_index.to(output.device))
        return flat.index_put(cells, flat[cells] + added).reshape(output.shape)

    return hook
