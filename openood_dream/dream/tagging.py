"""Class names in what a tokenizer writes: tagged where they are tokenised, so that they are known where they are looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

TAG = 1 << 40  # is added to the ids of a class name's tokens; no vocabulary is as large


class Found(NamedTuple):
    """A text with a class name as a tokenizer writes it.

    Attributes:
        ids: its token ids, without those that begin and end it.
        places: those of the class name's tokens among them.
    """

    ids: list[int]
    places: range

    @property
    def name(self) -> list[int]:
        """The token ids of the class name."""
        return self.ids[self.places.start : self.places.stop]


class Tagger:
    """Tags the tokens of class names in what a tokenizer makes of prompts.

    Pipelines put prompts into templates of their own, and some write them in lower case, so a prompt is looked for within
    the text that the tokenizer is given; where several are in it, as "a cat" in "a cattle", the longest one is meant.

    Args:
        tokenizer: of a text encoder.
        templates: class name -> its prompt, with {} once, where the name goes.
    """

    def __init__(self, tokenizer: Any, templates: Mapping[str, str]) -> None:
        self.tokenizer, self.templates = tokenizer, templates
        self.write = partial(type(tokenizer).__call__, tokenizer)  # without tags, within the block too
        self.names = sorted(templates, key=lambda name: len(templates[name].replace("{}", name)), reverse=True)
        self.known: dict[str, Found | None] = {}

    def find(self, text: str) -> Found | None:
        """A text as the tokenizer writes it, with the places of its class name.

        Args:
            text: what the tokenizer is given.

        Returns:
            What was found; None where no prompt is in the text, or the tokenizer has no token for its name.
        """
        if text not in self.known:
            self.known[text] = self._look(text)
        return self.known[text]

    def _look(self, text: str) -> Found | None:
        for name in self.names:
            prompt = self.templates[name].replace("{}", name)
            at = text.rfind(prompt)
            at = text.lower().rfind(prompt.lower()) if at < 0 else at
            if at >= 0:
                start = at + self.templates[name].index("{}")
                found = written(self.write, self.tokenizer.is_fast, text, start, start + len(name))
                return found if found.places else None
        return None

    @contextmanager
    def tagging(self) -> Iterator[None]:
        """Within the block the tokenizer adds TAG to the ids of class names, whoever calls it.

        A class of its own takes the place of the tokenizer's, since `tokenizer(...)` asks the class for `__call__`, and
        since processors and chat templates call it too.
        """
        tokenizer, plain, write, tag = self.tokenizer, type(self.tokenizer), self.write, self._tag

        class Tagging(plain):  # type: ignore[misc, valid-type]
            def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
                result = write(text, *args, **options)
                tag(text, result)
                return result

        tokenizer.__class__ = Tagging
        try:
            yield
        finally:
            tokenizer.__class__ = plain

    def _tag(self, text: Any, result: Any) -> None:
        """Tags the names in the ids of a result, in place."""
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
            return
        ids = result["input_ids"]
        rows = ids if len(ids) and not isinstance(ids[0], int) else [ids]
        for row, one in zip(rows, texts):
            found = self.find(one)
            if found is not None:
                head = found.ids[: found.places.stop]
                at = _last([int(number) for number in row], head)
                if at is not None:
                    for place in found.places:
                        row[at + place] += TAG


def _last(row: list[int], part: list[int]) -> int | None:
    """Where numbers stand in a row of them for the last time."""
    places = range(len(row) - len(part), -1, -1)
    return next((at for at in places if row[at : at + len(part)] == part), None)


def written(write: Callable[..., Any], fast: bool, text: str, start: int, end: int) -> Found:
    """A text as a tokenizer writes it, with the places of a part of it.

    Args:
        write: the tokenizer's call.
        fast: whether it is one that tells where in the text each token comes from.
        text: the text.
        start: where the part begins in it.
        end: where it ends.
    """
    if fast:
        found = write(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [i for i, (a, b) in enumerate(found.offset_mapping) if a < end and b > start and b > a]
        return Found(list(found.input_ids), range(inside[0], inside[-1] + 1) if inside else range(0))
    whole, before, after = (
        list(write(part, add_special_tokens=False).input_ids) if part else []
        for part in (text, text[:start], text[end:])
    )
    first, last = _shared(whole, before), _shared(whole[::-1], after[::-1])
    return Found(whole, range(first, max(first, len(whole) - last)))


def _shared(one: list[int], other: list[int]) -> int:
    """How many numbers two lists have in common from their beginning on."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def untagged(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids without tags, and where they had them.

    Args:
        ids: token ids, of any shape.

    Returns:
        The ids, and truth values of the same shape.
    """
    named = ids >= TAG
    return ids - TAG * named, named
