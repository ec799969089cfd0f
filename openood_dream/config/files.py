"""Reading YAML files in OpenOOD's grammar, and finding those that are shipped with the package."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from openood_dream.config.paths import expanded
from openood_dream.errors import InputError, nearest, show
from openood_dream.store.files import read_text

CHARACTERS, VALUES, DEPTH = 2_000_000, 100_000, 100  # that a file may have; one of all ImageNet-21k has a fifth


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that refuses what takes a few lines to write and all memory to read: deep nesting, loops, and aliases
    of aliases, each of which counts as what it stands for."""

    def __init__(self, stream: str) -> None:
        if len(stream) > CHARACTERS:
            raise _flaw_at(f"more than {CHARACTERS} characters", yaml.Mark("", 0, 0, 0, None, 0))
        super().__init__(stream)
        self._open: list[str | None] = []  # the anchors of the nodes around the one that is read
        self._size = 0  # of what was read
        self._sizes: dict[str, int] = {}  # of what stands behind each anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's hook for each node as it is read, below `parent` at `index`."""
        event = self.peek_event()
        alias = isinstance(event, yaml.AliasEvent)
        if alias and event.anchor in self._open:
            raise _flaw_at("an alias to the very value that it stands in", event.start_mark)
        if len(self._open) == DEPTH:
            raise _flaw_at(f"nested too deeply, more than {DEPTH} levels", event.start_mark)
        before = self._size
        self._size += self._sizes.get(event.anchor, 1) if alias else 1 + len(getattr(event, "value", "")) // 64
        if self._size > VALUES:
            raise _flaw_at(f"more than {VALUES} values, what aliases stand for counted each time", event.start_mark)
        self._open.append(None if alias else event.anchor)
        try:
            node = super().compose_node(parent, index)
        finally:
            self._open.pop()
        if event.anchor and not alias:
            self._sizes[event.anchor] = self._size - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):  # from int(), date(), ...
            raise _flaw(f"not a valid {node.tag.rpartition(':')[2]}: {show(node.value)}", node) from None


class _Loader(BoundedLoader):
    """Reads 1e-3 as a number, as YAML 1.2 and OpenOOD do, and refuses what would be lost in silence."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _flaw("a whole number of more than 64 bits", node)
        return value

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's hook for each node as it is read, below `parent` at `index`."""
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode):
            _check_text(node)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            _check_keys(node)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _flaw(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return _flaw_at(problem, node.start_mark)


def _flaw_at(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _check_text(node: yaml.ScalarNode) -> None:
    """Raises YAMLError for characters that nobody means: halves of some, and those that steer a terminal."""
    if re.search("[\ud800-\udfff]", node.value):
        raise _flaw("an escape that stands for no character", node)
    if found := re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", node.value):
        raise _flaw(f"the control character #x{ord(found[0]):02x} in text; leave it out", node)


def _check_keys(node: yaml.MappingNode) -> None:
    """Raises YAMLError for a key that is no text or is given twice."""
    first: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            what = show(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise _flaw(f"expected text as a key, got {what}; put it in quotes", key)
        line = key.start_mark.line + 1
        if key.value in first:
            raise _flaw(f"the key {key.value!r} is given twice, first on line {first[key.value]}", key)
        first[key.value] = line


def parse(text: str) -> Any:
    """YAML text as Python values.

    Raises:
        yaml.YAMLError: beside YAML's own errors, for repeated keys, keys that are no text, and alias loops.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 # nosec B506 (it is a SafeLoader)


def reason(error: yaml.YAMLError, text: str) -> tuple[int, int, str]:
    """Line, column and words of the `error` that YAML found in `text`."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position].split("\n")
        return len(before), len(before[-1]) + 1, f"the character #x{error.character:04x} is not allowed"
    assert isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None  # noqa: S101 # nosec B101
    words = ": ".join(filter(None, [error.context, error.problem]))
    if "'@'" in words:
        words += "; put a reference in quotes, '@{key}'"
    return error.problem_mark.line + 1, error.problem_mark.column + 1, words


def read(file: str) -> dict[str, Any]:
    """The mapping of settings in a YAML file; InputError names file, line and column of what is wrong."""
    try:
        text = read_text(file, "expected a config in YAML", 4 * CHARACTERS)
    except FileNotFoundError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    try:
        data = parse(text)
    except yaml.YAMLError as error:
        line, column, words = reason(error, text)
        raise InputError(f"{file}:{line}:{column}: {words}") from None
    except RecursionError:
        raise InputError(f"{file}: nested too deeply") from None
    if not isinstance(data, dict):
        got = "an empty file" if data is None else show(data)
        raise InputError(f"{file}: expected a mapping of settings at the top level, got {got}")
    return data


def shipped_configs() -> Path:
    """The folder of the configs that come with the package."""
    package = Path(__file__).parent.parent
    installed = package / "configs" / "openood"
    return installed if installed.is_dir() else package.parent / "configs" / "openood"


def is_shipped(file: str) -> bool:
    """Whether a config file comes with the package."""
    return os.path.realpath(file).startswith(os.path.realpath(shipped_configs()) + os.sep)


def _find(name: str, folder: str, asked_by: str) -> str:
    """The path of a config given relative to a folder, or else to the shipped configs."""
    try:
        name = expanded(name)
    except ValueError as error:
        raise InputError(f"{asked_by}{error}") from None
    local, shipped = os.path.join(folder, name), shipped_configs() / name
    for path in (local, str(shipped)):
        if os.path.isdir(path):
            raise InputError(f"{asked_by}{name}: expected a file, got a folder")
        if os.path.exists(path):
            return path
    parent, shipped_folder = os.path.dirname(local) or ".", shipped_configs()
    beside = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
    known = [os.path.join(os.path.dirname(name), file) for file in beside if file.endswith((".yml", ".yaml"))]
    known += sorted(path.relative_to(shipped_folder).as_posix() for path in shipped_folder.rglob("*.y*ml"))
    word = nearest(os.path.basename(name), map(os.path.basename, known), 0.75)
    near = nearest(name, [path for path in known if os.path.basename(path) == word], 0) or nearest(name, known)
    hint = f"; did you mean {near!r}?" if near else ""
    raise InputError(f"{asked_by}{name}: no such file, nor among the shipped configs{hint}")


def layers(
    name: str, merged: set[str], folder: str = "", trail: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A config file with everything that it includes, in the order of merging.

    Args:
        name: the file, relative to `folder` or to the shipped configs.
        merged: the real paths of files that were merged before; they are not included again. Grows.
        folder: where relative names start.
        trail: the files that include this one, outermost first.

    Yields:
        The path of each file and its settings, without its `include`.

    Raises:
        InputError: a file is missing, is not YAML, or includes itself.
    """
    file = _find(name, folder, f"{trail[-1]}: include: " if trail else "")
    path = os.path.realpath(file)
    if trail and path in merged:
        return
    if any(path == os.path.realpath(other) for other in trail):
        raise InputError(f"{trail[-1]}: include: {name} leads back to itself ({' -> '.join([*trail, file])})")
    data = read(file)
    includes = data.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(item, str) and item.strip() for item in includes):
        raise InputError(f"{file}: include: expected a list of files, got {show(includes)}")
    for item in includes:
        yield from layers(item, merged, os.path.dirname(file), (*trail, file))
    merged.add(path)
    yield file, data
