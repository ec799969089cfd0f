"""Files merged left to right, overrides of the command line, and references: OpenOOD's YAML grammar."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

import yaml

from openood_dream.config.files import layers, parse
from openood_dream.config.tree import COMMAND_LINE, MISSING, Key, Merged, Origins, Path, Tree, keys, lookup
from openood_dream.config.words import read_word
from openood_dream.errors import InputError, nearest, show

_LABELS = ("benchmark", "methods")  # its keys are labels such as "sigma 0.07", so a dot in them is just a dot

FORGET = "_DELETE_CONFIG_"  # OpenOOD's value for a key that the files before are not to have set

# Gives the dotted keys that may be set although no file sets them.
KnownKeys = Callable[[dict[str, Any]], dict[str, Key]]


def merge(
    files: Iterable[str | FilePath],
    overrides: Iterable[str],
    known: KnownKeys,
    *,
    switches: Collection[str] = (),
    sections: Collection[str] = (),
) -> Merged:
    """Files merged left to right, each after its includes, then overrides; references are resolved.

    Args:
        files: paths; what is not there is looked up among the shipped configs. An include that was merged before is not
            merged again, so that what came since then stays.
        overrides: the words `--key.sub value` or `--key.sub=value` of a command line.
        known: gives the keys that an override may set although no file does, for the values merged so far; the words of
            the command line are read as their types say.
        switches: keys of truth values, which need no value on the command line.
        sections: top-level keys that must be mappings, which references take for granted.

    Returns:
        The values and who set each.

    Raises:
        InputError: a file, an override or a reference is wrong.
    """
    values: dict[str, Any] = {}
    origins, merged = Origins(), set[str]()
    for name in files:
        for file, data in layers(os.fspath(name), merged):
            assign(values, origins, (), data, file)
    _override(values, origins, overrides, known, switches)
    for name in sections:
        found = values.get(name)
        if not (found is None or isinstance(found, dict) or isinstance(found, str) and "@{" in found):
            raise origins.error((name,), f"expected a mapping of settings, got {show(found)}")
    return Merged(_References(values, origins).resolve(values), origins)


def assign(values: dict[str, Any], origins: Origins, path: Path, value: Any, file: str) -> None:
    """Lays a value over a config: mappings key by key, everything else (an empty mapping too) as a whole; FORGET takes
    the key away.

    Args:
        values: the config, changed in place.
        origins: who set its keys, changed in place.
        path: the key to set; () for a whole config.
        value: what to lay over it; dots in its keys separate names.
        file: who sets it.
    """
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            below = (key,) if path == _LABELS else split(key, file)
            assign(values, origins, (*path, *below), item, file)
        return
    section: Tree = values
    for end, part in enumerate(path[:-1], 1):
        if not isinstance(section.get(part), dict):
            section[part] = {}
        origins.forget(path[:end])  # an empty section, or something else, that is now filled key by key
        section = section[part]
    if isinstance(section.get(path[-1]), dict) or value == FORGET:
        origins.forget_below(path)
    if value == FORGET:
        section.pop(path[-1], None)
        return
    section[path[-1]] = value
    origins.set(path, file)


def split(key: str, file: str) -> tuple[str, ...]:
    """The names of a dotted `key`; InputError, which names the `file` that has it, for an empty one among them."""
    parts = tuple(key.split("."))
    if not all(parts):
        raise InputError(f"{file}: expected names separated by single dots as a key, got {key!r}")
    return parts


def quoted(text: str) -> str:
    """A text as YAML, in quotes only where YAML would read it as something else."""
    try:
        alike = parse(text) == text and not text.startswith("-")
    except yaml.YAMLError:
        alike = False
    return text if alike else json.dumps(text)


def _override_words(tokens: Iterable[str], switches: Collection[str]) -> Iterator[tuple[str, str]]:
    """The keys and words of overrides."""
    words = list(tokens)
    while words:
        token = words.pop(0)
        if not re.match(r"--[^-=]", token):
            raise InputError(f"{COMMAND_LINE}: expected --key.sub value, got {token!r}")
        key, equals, text = token[2:].partition("=")
        given = bool(equals)
        if not given and words and not words[0].startswith("--"):
            text, given = words.pop(0), True
        if not text and key in switches:
            text, given = "true", True
        if not given:
            raise InputError(f"{COMMAND_LINE}: {key}: no value; write null for none and '' for empty text")
        yield key, text


def _override(
    values: dict[str, Any], origins: Origins, tokens: Iterable[str], known: KnownKeys, switches: Collection[str]
) -> None:
    # those decide which keys exist
    first = ("trainer.name", "network.name", "dream.outliers.method")
    pairs = sorted(_override_words(tokens, switches), key=lambda pair: pair[0] not in first)
    for key, text in pairs:
        path = split(key, COMMAND_LINE)
        schema = known(values)
        free = any(key.startswith(f"{name}.") for name, of in schema.items() if of.free)
        if lookup(values, path, MISSING) is MISSING and key not in schema and not free:
            raise InputError(f"{COMMAND_LINE}: {key}: unknown key{_hint(key, [*keys(values), *schema])}")
        assign(values, origins, path, read_word(text, key, schema[key].kind if key in schema else Any), COMMAND_LINE)


def _hint(key: str, names: list[str]) -> str:
    """What to offer in the place of an unknown key: one that looks alike, or ends alike."""
    by_end: dict[str, str] = {}
    for name in names:
        by_end.setdefault(name.rpartition(".")[2], name)
    near = nearest(key, names) or by_end.get(nearest(key.rpartition(".")[2], by_end, 0.75) or "")
    return f"; did you mean '--{near}'?" if near else "; an override must name a key of the configs"


class _References:
    """Puts values in the place of `'@{key}'`."""

    WHOLE = re.compile(r"@\{([^{}]+)\}")
    QUOTED = re.compile(r"'@\{([^{}]+)\}'")

    def __init__(self, values: dict[str, Any], origins: Origins) -> None:
        self.values, self.origins = values, origins

    def resolve(self, value: Any, path: Path = (), trail: tuple[str, ...] = ()) -> Any:
        """The value of the key `path` without references; `trail` holds the references on the way here."""
        if isinstance(value, dict):
            return {key: self.resolve(item, (*path, key), trail) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, path, trail) for item in value]
        if not isinstance(value, str):
            return value
        whole = self.WHOLE.fullmatch(value)
        if whole:
            if not trail:
                self.origins.refer(path)
            return self.fetch(whole[1], path, trail)
        unquoted = self.WHOLE.search(self.QUOTED.sub("", value))
        if unquoted:
            text = f"expected quotes around a reference inside text, '{unquoted[0]}', got {show(value)}"
            raise self.origins.error(path, text)
        return self.QUOTED.sub(lambda match: self.text(match[1], path, trail), value)

    def text(self, key: str, path: Path, trail: tuple[str, ...]) -> str:
        """The value of `key` as a part of a text."""
        value = self.fetch(key, path, trail)
        if isinstance(value, dict):
            text = f"expected a reference to a single value inside text, got the section '@{{{key}}}'"
            raise self.origins.error(path, text)
        return str(value)

    def fetch(self, key: str, path: Path, trail: tuple[str, ...]) -> Any:
        """The value that `key` names, itself without references."""
        if key in trail:
            text = f"the reference '@{{{key}}}' leads back to itself ({' -> '.join([*trail, key])})"
            raise self.origins.error(path, text)
        value: Any = self.values
        parts = tuple(key.split("."))
        self.origins.read.add(parts[0])
        for end, part in enumerate(parts):
            if isinstance(value, str):  # a section that is itself a reference
                value = self.resolve(value, parts[:end], (*trail, key))
            if not isinstance(value, dict) or part not in value:
                near = nearest(key, keys(self.values))
                hint = f"; did you mean '@{{{near}}}'?" if near else ""
                raise self.origins.error(path, f"the reference '@{{{key}}}' names no key{hint}")
            value = value[part]
        return self.resolve(value, parts, (*trail, key))
