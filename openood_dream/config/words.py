"""The value of an override: a word of the command line, read as the schema of its key wants it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

from openood_dream.config.files import parse, reason
from openood_dream.config.tree import COMMAND_LINE
from openood_dream.errors import InputError, show


def read_word(text: str, key: str, kind: Any = Any) -> Any:
    """The value that a word of the command line stands for.

    Where the schema wants text the word is taken as it is; whole numbers are decimal; everything else is YAML.

    Args:
        text: the word.
        key: its dotted key, for messages.
        kind: the type of the key in the schema; Any where the schema does not know it.

    Raises:
        InputError: it is no YAML, where that is wanted.
    """
    wanted = forms(kind)
    if not text and str not in wanted:
        raise InputError(f"{COMMAND_LINE}: {key}: no value; write null for none")
    if int in wanted and re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        if str in wanted:
            return text
        why = reason(error, text)[2]
        raise InputError(f"{COMMAND_LINE}: {key}: expected a YAML value, got {show(text)} ({why})") from None
    return text if str in wanted and (isinstance(value, str) or type(value) not in wanted) else value


def forms(kind: Any) -> set[type]:
    """The types that a value of an annotated type may have in YAML; empty for Any.

    Args:
        kind: a type of a model's field.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        return forms(get_args(kind)[0])
    if origin is Literal:
        return {type(value) for value in get_args(kind)}
    if origin in (list, dict, tuple):
        return {dict if origin is dict else list}
    if get_args(kind):  # a union
        return set().union(*map(forms, get_args(kind)))
    if kind is Any or not isinstance(kind, type):
        return set()
    if kind is float:
        return {float, int}
    return {kind} if kind in (str, int, bool, type(None)) else {dict}
