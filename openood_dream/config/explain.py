"""What settings models say of their keys: type, default and description in plain words."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from openood_dream.config.listing import shown_value
from openood_dream.config.paths import NAMES
from openood_dream.config.schema import Expects, model_in, phrase

ANY = "<name>"  # stands for a name of the user's own in a dotted key


class Entry(NamedTuple):
    """A key of a config: its dotted name, type and default in plain words, and what it means.

    `inner` is the model of the keys below it, if it has one; `free` says whether any key may stand below it.
    """

    key: str
    kind: str
    default: str
    text: str
    inner: type[BaseModel] | None
    free: bool


def entries(model: type[BaseModel], prefix: str = "") -> Iterator[Entry]:
    """Every key of a model and of those within it.

    Args:
        model: the model.
        prefix: what each key begins with.
    """
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        free = any(get_origin(kind) is dict for kind in _alternatives(field.annotation))
        yield Entry(prefix + name, _kind(model, name), default(field), field.description or "", inner, free)
        if inner:
            yield from entries(inner, f"{prefix}{name}.")
    extra = getattr(model, "EXTRA", None)
    if extra is not None:
        yield Entry(prefix + ANY, "settings", "", getattr(model, "EXTRA_TEXT", ""), extra, False)
        yield from entries(extra, f"{prefix}{ANY}.")


def summary(model: type[BaseModel]) -> str:
    """The first paragraph of what a model says of itself, without the key that it begins with."""
    text = " ".join((model.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r"^`[^`]*`[^:.]*(: |\.)", "", text)


def default(field: FieldInfo) -> str:
    """A field's default as YAML has it; "required" where there is none, "" where it is a section's own defaults."""
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return ""
    return shown_value(field.default)


def words(kind: Any, notes: Iterable[Any] = ()) -> str:
    """A type in plain words, with all names that a choice has.

    Args:
        kind: the type.
        notes: its limits, as pydantic keeps them in a field's metadata.
    """
    notes, args = list(notes), get_args(kind)
    if any(isinstance(note, Expects) for note in notes):
        return phrase(kind, notes).replace("text that is not blank", "text")
    if get_origin(kind) is Annotated:
        return words(args[0], [*args[1:], *notes])
    if get_origin(kind) in (Union, types.UnionType):
        several = " or ".join(words(arg, notes) for arg in args if arg is not type(None))
        return several + (", or null" if type(None) in args else "")
    if get_origin(kind) is Literal:
        names = ", ".join(map(str, args))
        return f"one of {names}" if len(args) > 1 else names
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "settings"
    return phrase(kind, notes).replace("text that is not blank", "text")


def _kind(model: type[BaseModel], name: str) -> str:
    """The type of a field in words: one that holds a path, and one of OpenOOD's names, are known by their keys."""
    field, names = model.model_fields[name], getattr(model, "HOST_NAMES", ())
    text = (
        f"one of {', '.join(names)}, or null" if name == "name" and names else words(field.annotation, field.metadata)
    )
    return text.replace("text", "a path") if name in NAMES else text


def _alternatives(kind: Any) -> Iterator[Any]:
    """A type, or those of a union, without their notes."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        for arg in get_args(kind):
            yield from _alternatives(arg)
    else:
        yield kind
