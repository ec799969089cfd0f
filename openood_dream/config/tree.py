"""A merged config as plain dicts and lists, and which file set each of its keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from openood_dream.errors import InputError

COMMAND_LINE = "command line"
MISSING = object()

Path = tuple[str | int, ...]


# A part of a config: a mapping whose keys are text, but for lists below it.
Tree = dict[Any, Any]


def plain(value: Any) -> Any:
    """A config as plain dicts and lists: a copy, also of OpenOOD's Config objects."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def lookup(value: Any, path: Iterable[str | int], default: Any = None) -> Any:
    """The value below the keys `path` in nested dicts and lists, or `default` where there is none."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return default
    return value


def dotted(path: Sequence[str | int]) -> str:
    """A path as messages show it: ("benchmark", "seeds", 0) is benchmark.seeds[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the nested dicts `values`, sections included, each after `prefix`."""
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested mappings with their values; lists, and mappings without keys, are values.

    Args:
        values: the mappings.
        prefix: what each key begins with.
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class Key(NamedTuple):
    """What a schema knows of a key: its type, and whether any key may stand below it."""

    kind: Any
    free: bool


class Origin(NamedTuple):
    """Who set a key: a file, or the command line; `order` counts up in the order of merging."""

    file: str
    order: int


UNKNOWN = Origin("", -1)


class Origins:
    """Who set each key of a merged config, so that messages can name the file."""

    def __init__(self) -> None:
        self._by_path: dict[Path, Origin] = {}
        self._references: set[Path] = set()
        self.read: set[str] = set()  # the first names of keys that others refer to
        self.lenient = False  # whether sections of OpenOOD may hold keys that neither of us knows: another plugin's

    def set(self, path: Path, file: str) -> None:
        """Notes that `file` set the key `path`, as the newest of all."""
        self._by_path.pop(path, None)  # so that the newest is always the last
        newest = next(reversed(self._by_path.values()), UNKNOWN)
        self._by_path[path] = Origin(file, newest.order + 1)

    def refer(self, path: Path) -> None:
        """Notes that the value of a key is that of another one."""
        self._references.add(path)

    def order(self, path: Path) -> int:
        """The place of a key in the order of merging, for the first of several mistakes; after all others where its
        value came by reference, since then the mistake is likely to stand where it came from."""
        return self.of(path).order + (path in self._references) * len(self._by_path)

    def forget(self, path: Path) -> None:
        """Forgets who set the key itself; what is known of the keys below stays."""
        self._by_path.pop(path, None)

    def forget_below(self, path: Path) -> None:
        """Forgets who set the key and all keys below it."""
        for key in [key for key in self._by_path if key[: len(path)] == path]:
            del self._by_path[key]

    def of(self, path: Sequence[str | int]) -> Origin:
        """Who set this key, or else who last wrote in it, or else in the section that lacks it."""
        path = tuple(path)
        for end in range(1, len(path) + 1):  # a value that was set whole: a reference to a section, a list
            if path[:end] in self._by_path:
                return self._by_path[path[:end]]
        for end in range(len(path), 0, -1):
            inside = [origin for key, origin in self._by_path.items() if key[:end] == path[:end]]
            if inside:  # an override is seldom to blame for what the rest of its section lacks
                return max([o for o in inside if o.file != COMMAND_LINE] or inside, key=lambda o: o.order)
        return UNKNOWN

    def where(self, path: Sequence[str | int]) -> str:
        """The beginning of a message about a key: its file, where known, and the dotted key."""
        return ": ".join(filter(None, [self.of(path).file, dotted(path)]))

    def error(self, path: Sequence[str | int], text: str) -> InputError:
        """The InputError that says `text` about the key `path`."""
        return InputError(": ".join(filter(None, [self.where(path), text])))


class Merged(NamedTuple):
    """A merged config: its values as plain dicts and lists, and who set them."""

    values: dict[str, Any]
    origins: Origins
