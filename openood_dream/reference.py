"""The keys of a config explained, from the settings models themselves: for the command `config` and for docs/reference.md."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from openood_dream.config.explain import ANY, Entry, entries, summary
from openood_dream.config.listing import shown_value
from openood_dream.config.schema import HostSection, Section
from openood_dream.config.tree import MISSING, lookup
from openood_dream.dream.settings import SAMPLER_SETTINGS
from openood_dream.errors import InputError, nearest
from openood_dream.networks.settings import GENERATIVE_SETTINGS
from openood_dream.postprocessors.settings import ARGUMENTS
from openood_dream.sections import HOST_TOP, RunSettings, Sections, section_models
from openood_dream.trainers.settings import TRAINER_SETTINGS


class Choice(NamedTuple):
    """A key whose value, a name, decides which other keys there are.

    `word` and a name, such as trainer.npos, stand for the keys of that name; these lie below `at`. `kind` is the type of
    the key in words, where {} are the names.
    """

    word: str
    key: str
    at: str
    kind: str
    models: Mapping[str, type[Section]]


CHOICES = (
    Choice("network", "network.name", "network", "timm:<model>, {}, or a network of OpenOOD's", GENERATIVE_SETTINGS),
    Choice("trainer", "trainer.name", "trainer", "one of {}, or a trainer of OpenOOD's", TRAINER_SETTINGS),
    Choice(
        "postprocessor",
        "postprocessor.name",
        "postprocessor.postprocessor_args",
        "one of {}, or a postprocessor of OpenOOD's",
        ARGUMENTS,
    ),
    Choice("dream.outliers", "dream.outliers.method", "dream.outliers", "one of {}", SAMPLER_SETTINGS),
)


class Group(NamedTuple):
    """Keys that belong together: a section's, or those that some values of a choice have besides.

    `title` is the section, "" for the top level, or a key with its values, such as "trainer.name: npos"; `words` are
    what a user may call the whole group; `host` are keys that OpenOOD alone reads.
    """

    title: str
    words: tuple[str, ...]
    text: str
    entries: list[Entry]
    host: tuple[str, ...] = ()
    choice: Choice | None = None


INCLUDE = Entry(
    "include",
    "a list of files",
    "[]",
    "config files that the one which holds the key is laid over; relative to it, or shipped ones",
    None,
    False,
)


def groups() -> list[Group]:
    """All keys there are: section by section, each with those that depend on a name."""
    top = [INCLUDE, *_common(RunSettings, "")]
    found = [Group("", (), summary(RunSettings), top, tuple(HOST_TOP))]
    for name, model in section_models({}).items():
        common = _common(model, f"{name}.")
        found.append(Group(name, (name,), summary(model), common, _host(model, f"{name}.", common)))
        for choice in CHOICES:
            if choice.key.split(".")[0] == name:
                found += _chosen(choice, found[-1].entries if choice.word == name else _under(choice.at, found))
    return found


def _common(model: type[Section], prefix: str) -> list[Entry]:
    """The keys of a section whatever is chosen, with all names of the choices."""
    kinds = {choice.key: choice.kind.format(", ".join(choice.models)) for choice in CHOICES}
    return [entry._replace(kind=kinds.get(entry.key, entry.kind)) for entry in entries(model, prefix)]


def _chosen(choice: Choice, common: Iterable[Entry]) -> Iterator[Group]:
    """The keys that each value of a choice has besides the common ones; values with the same model share a group."""
    for model in dict.fromkeys(choice.models.values()):
        names = [name for name, other in choice.models.items() if other is model]
        known = {entry.key: entry for entry in common}
        own = [
            entry
            for entry in entries(model, f"{choice.at}.")
            if entry.key != choice.key and known.get(entry.key) != entry
        ]
        words = tuple(f"{choice.word}.{name}" for name in names)
        yield Group(f"{choice.key}: {', '.join(names)}", words, summary(model), own, choice=choice)


def _under(key: str, found: Iterable[Group]) -> list[Entry]:
    return [entry for group in found for entry in group.entries if entry.key.startswith(f"{key}.")]


def _host(model: type[Section], prefix: str, found: Iterable[Entry]) -> tuple[str, ...]:
    """The keys of a section and of those within it that OpenOOD alone reads, or that are nothing to either."""
    places = [(model, prefix), *((entry.inner, f"{entry.key}.") for entry in found if entry.inner)]
    return tuple(
        at + key
        for holder, at in places
        if issubclass(holder, HostSection)
        for key in dict.fromkeys((*holder.HOST_KEYS, *holder.SILENT))
        if key not in holder.model_fields
    )


def _host_once(group: Group) -> list[str]:
    """The keys of a group that OpenOOD alone reads, those of repeated settings once."""
    shown = {group.title, *(entry.key for entry in _unrepeated(group.entries) if entry.inner)}
    return [key for key in group.host if key.rpartition(".")[0] in shown]


# --------------------------------------------------------------------------------------------------------- for a terminal


def explain(words: Iterable[str], config: Sections | None = None) -> str:
    """Keys and sections in plain words: type, default and meaning, and with a config the values that they have there.

    Args:
        words: dotted keys, sections, or a section and one of the names that it may have, such as trainer.npos.
        config: a config; where the keys depend on a name, those of its names are explained.

    Raises:
        InputError: there is no such key; the message offers some that look alike.
    """
    every = groups()
    return "\n".join("".join(f"{line}\n" for line in _explained(word, every, config)) for word in words)


def overview() -> str:
    """One line for each section, and how to go on."""
    lines = [f"{group.title}: {_plain(group.text)}" for group in groups() if group.title and not group.choice]
    top = ", ".join(RunSettings.model_fields)
    how = "openood-dream config dream explains a section, openood-dream config dream.outliers.k a key"
    return "".join(f"{line}\n" for line in [f"top level: {top}", *lines, "", how])


def _explained(word: str, every: list[Group], config: Sections | None) -> list[str]:
    named = next((group for group in every if word in group.words), None)
    if named is not None and named.choice:
        rows = [line for entry in named.entries for line in _lines(entry, entry.key, config)]
        return [": ".join(filter(None, [named.title, _plain(named.text)])), *(rows or ["    no keys of its own"])]
    lines = _of_a_name(word, every, config) or _of_a_key(word, every, config)
    if named is not None:
        host = ", ".join(key.removeprefix(f"{word}.") for key in _host_once(named))
        lines = [f"{word}: {_plain(named.text)}", *lines, *([f"OpenOOD alone reads: {host}"] if host else [])]
    return lines or _of_no_model(word, every, config)


def _of_a_name(word: str, every: list[Group], config: Sections | None) -> list[str]:
    """What is said of a key after a name, such as trainer.npos.implementation."""
    for group in every:
        for start in group.words:
            if group.choice and word.startswith(f"{start}."):
                return _rows(group.choice.at + word.removeprefix(start), group, config)
    return []


def _of_a_key(word: str, every: list[Group], config: Sections | None) -> list[str]:
    """What is said of a key, or of a section and all keys below it."""
    common = [line for group in every if not group.choice for line in _rows(word, group, config)]
    around = [choice for choice in CHOICES if f"{choice.at}.".startswith(f"{word}.")] if common else []
    lines = list(common)
    if not common and not any(_rows(word, group, config) for group in every if _is_chosen(group, config)):
        config = None  # its names have no such key, others do
    for group in every:
        # of a section without a config: the names alone, since the keys of all would be too many
        if group.choice and group.choice not in (around if config is None else ()) and _is_chosen(group, config):
            rows = _rows(word, group, config)
            lines += [f"with {group.title}", *rows] if rows else []
    for choice in around if config is None else ():
        names = ", ".join(choice.models)
        lines.append(
            f"{choice.key} decides which other keys there are: openood-dream config {choice.word}.NAME, of {names}"
        )
    return lines


def _of_no_model(word: str, every: list[Group], config: Sections | None) -> list[str]:
    """What is said of a key that no model has: of the mapping around it, or whose key it is."""
    around = word
    while around := around.rpartition(".")[0]:
        if any(entry.free and entry.key == around for group in every for entry in group.entries):
            return _explained(around, every, config)
    if any(_fits(word, key, group) and word.count(".") == key.count(".") for group in every for key in group.host):
        return [f"{word}: OpenOOD alone reads it", *_value(word, "not set", config)]
    if config is not None and _here(word, config) is not MISSING:
        return [f"{word}: no key of ours; other keys may refer to it", *_value(word, "", config)]
    raise InputError(f"{word}: unknown key; {_hint(word, every)}")


def _hint(word: str, every: list[Group]) -> str:
    """Some keys that end in a word or look like it."""
    known = {
        key for group in every for key in (*group.words, *(entry.key for entry in group.entries)) if ANY not in key
    }
    near = sorted(key for key in known if key.endswith(f".{word}"))[:3] or difflib.get_close_matches(
        word, sorted(known), 3
    )
    if near:
        return f"did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?"
    return f"sections are {', '.join(group.title for group in every if group.title and not group.choice)}"


def _is_chosen(group: Group, config: Sections | None) -> bool:
    """Whether the keys of a group are there with the names of a config; without one, whether they may be."""
    if group.choice is None or config is None:
        return True
    return f"{group.choice.word}.{config.at(group.choice.key, 'knn')}" in group.words  # knn: the default of a sampler


def _rows(word: str, group: Group, config: Sections | None) -> list[str]:
    """What is said of those keys of a group that a word names."""
    found = [entry for entry in group.entries if _fits(word, entry.key, group)]
    asked = word.split(".")
    return [
        line
        for entry in (_unrepeated(found) if config is None else found)
        for line in _lines(entry, ".".join([*asked, *entry.key.split(".")[len(asked) :]]), config)
    ]


def _fits(word: str, key: str, group: Group) -> bool:
    """Whether a word names a key or a section around it; <name> is any word that does not look like a misspelt key."""
    asked, parts = word.split("."), key.split(".")
    if len(asked) > len(parts):
        return False
    for place, (name, part) in enumerate(zip(asked, parts)):
        if name != part and (part != ANY or nearest(name, _beside(place, group), 0.7)):
            return False
    return True


def _beside(place: int, group: Group) -> set[str]:
    """The names that the keys of a group have at a place between their dots."""
    return {entry.key.split(".")[place] for entry in group.entries if entry.key.count(".") >= place}


def _unrepeated(found: Iterable[Entry]) -> Iterator[Entry]:
    """Entries; of keys that hold the same settings the first alone with all of these."""
    seen: dict[Any, str] = {}
    left_out: tuple[str, ...] = ()
    for entry in found:
        if entry.key.startswith(left_out):
            continue
        if entry.inner in seen:
            left_out = (*left_out, f"{entry.key}.")
            kind = entry.kind.replace("settings", f"settings as {seen[entry.inner]} has", 1)
            entry = entry._replace(kind=kind, inner=None)
        elif entry.inner is not None:
            seen[entry.inner] = entry.key
        yield entry


def _lines(entry: Entry, key: str, config: Sections | None) -> list[str]:
    """A key: its type and default, what it means, and with a config its value there."""
    default = {"": "", "required": ", required"}.get(entry.default, f", default {entry.default}")
    text = [f"    {_plain(entry.text)}"] if entry.text else []
    unset = "not set" if entry.default == "required" else "the default"
    return [f"{key}: {entry.kind}{default}", *text, *([] if entry.inner else _value(key, unset, config))]


def _value(key: str, unset: str, config: Sections | None) -> list[str]:
    """The value that a key has in a config, and the file that set it."""
    if config is None:
        return []
    value = _here(key, config)
    return [f"    here: {unset}" if value is MISSING else f"    here: {shown_value(value)}  # {config.source(key)}"]


def _here(key: str, config: Sections) -> Any:
    return lookup(config.to_dict(), key.split("."), MISSING)


def _plain(text: str) -> str:
    return text.replace("`", "")


# ------------------------------------------------------------------------------------------------------ for docs/reference.md

HEAD = """# Reference: every key of a config

Made from the settings models by `openood-dream config --markdown > docs/reference.md`: edit the models, not this page.

`openood-dream config dream.outliers` explains a section, `openood-dream config dream.outliers.k` a key, `openood-dream config
trainer.npos` the keys that a name brings with it. With `--config A.yml B.yml ...` each key is shown with its value there and
the file behind it, and the names that the config has decide which keys are explained.

In YAML a key stands below its section; on the command line it is `--section.key value`. *Required* means that there is no
default: who needs the section needs the key. What OpenOOD alone reads is accepted and passed on to it.
"""


def markdown() -> str:
    """The page docs/reference.md."""
    return "\n".join([HEAD, *(line for group in groups() for line in _page(group))])


def _page(group: Group) -> Iterator[str]:
    yield f"### `{group.title}`" if group.choice else f"## `{group.title}`" if group.title else "## The top level"
    yield ""
    if group.text:
        yield f"{group.text[0].upper()}{group.text[1:]}"
        yield ""
    if group.entries:
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        for entry in _unrepeated(group.entries):
            default = "*required*" if entry.default == "required" else entry.default and f"`{entry.default}`"
            cells = (f"`{entry.key}`", _escaped(entry.kind), default, _escaped(entry.text))
            yield f"| {' | '.join(cells)} |"
    elif group.choice:
        yield "No keys of its own."
    if group.host:
        yield from ([""] if group.entries else [])
        yield f"OpenOOD alone reads: {', '.join(f'`{key}`' for key in _host_once(group))}."
    yield ""


def _escaped(text: str) -> str:
    """Text in a cell of a table, where <model> is no HTML."""
    return re.sub(r"<(?=\w)|\|", r"\\\g<0>", text)
