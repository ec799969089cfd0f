"""Sections of a config as frozen pydantic models, and one line in plain words for whatever does not fit them."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from openood_dream.config.tree import Key, Origins, Path, dotted, lookup
from openood_dream.errors import CONTROLS, FORMULAS, InputError, nearest, show

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """A section of the config: frozen, and keys that are not its own are refused.

    It knows the file that set each of its keys, so that whoever finds a value unfit can say where it stands.
    """

    # defer_build: most commands need few of the sections
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)
    section: ClassVar[str] = ""  # its dotted key, for messages about settings that were made in Python

    _origins: Origins = PrivateAttr(default_factory=Origins)
    _path: Path = PrivateAttr(default=())

    @classmethod
    def known_fields(cls) -> dict[str, FieldInfo]:
        """The keys that the section may have, also those that depend on the value of another."""
        return cls.model_fields

    @property
    def path(self) -> Path:
        """The keys that lead to it."""
        return self._path or tuple(filter(None, self.section.split(".")))

    def key(self, key: str) -> str:
        """The dotted name of one of its keys: "dream.outliers.k"."""
        return dotted((*self.path, *key.split(".")))

    def where(self, key: str = "") -> str:
        """The beginning of a message about one of its keys, or about all of it: "birds.yml: dream.outliers.k"."""
        return self._origins.where((*self.path, *filter(None, key.split("."))))

    def error(self, key: str, text: str) -> InputError:
        """The InputError that says `text` about its key `key`; "" is the section as a whole."""
        return InputError(f"{self.where(key)}: {text}")

    def below(self, key: str, model: type[SectionT], values: Any) -> SectionT:
        """Values that stand below one of its keys, as a section of their own.

        Args:
            key: the key.
            model: the model of the values.
            values: plain dicts and lists.

        Raises:
            InputError: names file and key of the first value that does not fit.
        """
        return validated(model, values, (*self.path, key), self._origins)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.model_dump() == other.model_dump()


class HostSection(Section):
    """A section that OpenOOD owns: it may hold keys that are OpenOOD's alone.

    HOST_KEYS are those that OpenOOD reads and we do not; of SILENT ones it makes no difference that we do not.
    HOST_NAMES are what OpenOOD knows under `name`, where that is nothing to us.
    """

    model_config = ConfigDict(extra="allow")

    HOST_KEYS: ClassVar[tuple[str, ...]] = ()
    SILENT: ClassVar[tuple[str, ...]] = ("num_gpus", "num_machines", "num_workers", "name")
    HOST_NAMES: ClassVar[tuple[str, ...]] = ()

    def unknown(self) -> list[str]:
        """The keys that neither we nor OpenOOD know."""
        return [key for key in self.model_extra or {} if key not in (*self.HOST_KEYS, *self.SILENT)]

    def unread(self) -> list[str]:
        """The keys that are OpenOOD's alone, and would matter there."""
        return [key for key in self.model_extra or {} if key in self.HOST_KEYS and key not in self.SILENT]


class Expects(NamedTuple):
    """What a field's error message says was expected, where its type alone would say too little."""

    text: str


def rule(holds: bool, text: str, *keys: str) -> None:
    """Reports `text` unless a rule beyond types holds: at the first of `keys` that is set, or at the checked field."""
    if not holds:
        raise PydanticCustomError("rule", "{text}", {"keys": keys, "text": text})


def each_once(values: list) -> None:
    """A rule: a list has entries, and each of them once."""
    rule(len(values) > 0, "expected at least one entry, got an empty list")
    for value, count in Counter(values).items():
        rule(count == 1, f"expected each entry once, got {value!r} {count} times")


def not_more(section: SectionT, *pairs: tuple[str, str]) -> SectionT:
    """A rule: of each pair of keys the first is at most the second. Returns the section."""
    for few, many in pairs:
        less, more = getattr(section, few), getattr(section, many)
        rule(less <= more, f"expected {few} <= {many}, got {less} and {more}", few, many)
    return section


NAME_BYTES = 200  # a file's name has at most 255, and those of names have endings


def name_file(name: str, what: str, *keys: str) -> None:
    """A rule: a name can be that of a file or folder, be shown, and stand in a CSV file.

    Args:
        name: the name.
        what: what messages call it.
        keys: those that may have set it, as for `rule`.
    """
    fits = name.strip() not in ("", ".", "..") and not set(name) & set("/\\\0") and not CONTROLS.search(name)
    rule(fits, f"expected {what} that can name a folder, got {name!r}", *keys)
    rule(not name.startswith(FORMULAS), f"expected {what} not to begin with = + - @, got {name!r}", *keys)
    size = len(name.encode())
    rule(size <= NAME_BYTES, f"expected {what} of at most {NAME_BYTES} bytes, got {size}: {show(name)}", *keys)


def _not_blank(text: Any) -> Any:
    if isinstance(text, str) and not text.strip():
        raise ValueError("blank")
    return text


Name = Annotated[str, BeforeValidator(_not_blank), Expects("text that is not blank")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Expects(f"an integer from 0 to {2**32 - 1}")]  # NumPy takes no more


class Problem(NamedTuple):
    """What is wrong with a config: its place in the order of merging, the line that says it, and whether a key is missing."""

    order: int
    line: str
    missing: bool = False


def validated(model: type[SectionT], data: Any, path: Path | None = None, origins: Origins | None = None) -> SectionT:
    """A section of the config as its model.

    Args:
        model: the section's model.
        data: its values, as plain dicts and lists.
        path: where the section stands in the config; None: where its model says.
        origins: who set its keys.

    Raises:
        InputError: names file and key of the first value that is missing, unknown or impossible.
    """
    path = tuple(filter(None, model.section.split("."))) if path is None else path
    section, problems = check(model, data, path, origins or Origins())
    raise_first(problems)
    assert section is not None  # noqa: S101 # nosec B101 (without problems there is a section)
    return section


def check(model: type[SectionT], data: Any, path: Path, origins: Origins) -> tuple[SectionT | None, list[Problem]]:
    """What `validated` does, without raising anything.

    Args:
        model: the section's model.
        data: its values, as plain dicts and lists.
        path: where the section stands in the config.
        origins: who set its keys.

    Returns:
        The section, or None; and what is wrong with it.
    """
    try:
        section = model.model_validate(data)
    except ValidationError as error:
        return None, _problems(error, model, data, path, origins)
    _attach(section, path, origins)
    unknown = [
        Problem(origins.order((*found.path, key)), str(found.error(key, text)))
        for found in host_sections(section)
        for key, text in _not_known(found)
    ]
    return (None, unknown) if unknown and not origins.lenient else (section, [])


def host_sections(section: BaseModel) -> Iterator[HostSection]:
    """A section and those within it that are OpenOOD's."""
    if isinstance(section, HostSection):
        yield section
    for _, value in section:
        if isinstance(value, BaseModel):
            yield from host_sections(value)


def _not_known(section: HostSection) -> Iterator[tuple[str, str]]:
    """The keys of a section that nobody reads, and a name that nobody has; and what is said of them."""
    for key in section.unknown():
        yield key, _unknown(key, type(section), section.path)
    names, name = section.HOST_NAMES, getattr(section, "name", None)
    if names and name is not None and name not in names:
        near = nearest(str(name), names)
        hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(names)}"
        yield "name", f"unknown {show(name)}; {hint}; a name of another OpenOOD plugin needs backend: openood"


def _unknown(key: str, model: type[BaseModel], path: Path) -> str:
    """What is said of a key that a section does not have."""
    names = [*_fields(model), *getattr(model, "HOST_KEYS", ())]
    near = nearest(key, names)
    listing = f"the keys of {dotted(path)} are {', '.join(names)}"
    return "unknown key; " + (f"did you mean {near!r}?" if near else listing)


def raise_first(problems: Iterable[Problem]) -> None:
    """Raises InputError for the first problem in the order of the files, if there is any."""
    found = sorted(problems, key=lambda problem: problem.order)
    if found:
        raise InputError(found[0].line + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""))


def schema_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Every dotted key of a model and of those within it, after `prefix`, and what the model knows of it."""
    for name in getattr(model, "HOST_KEYS", ()):
        yield prefix + name, Key(Any, True)
    for name, field in _fields(model).items():
        yield prefix + name, Key(field.annotation, _is_free(field.annotation))
        inner = model_in(field.annotation)
        if inner:
            yield from schema_keys(inner, f"{prefix}{name}.")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model among the alternatives of a field's type, if there is one."""
    # Python 3.10 takes list[int] for a type
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return model.known_fields() if issubclass(model, Section) else model.model_fields


def _is_free(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(map(_is_free, get_args(annotation)))


def _attach(section: BaseModel, path: Path, origins: Origins) -> None:
    """Tells a section, and those within it, where they stand and who set their keys."""
    if isinstance(section, Section):
        section._path, section._origins = path, origins
    for name, value in section:
        if isinstance(value, BaseModel):
            _attach(value, (*path, name), origins)


def _problems(error: ValidationError, model: type[BaseModel], data: Any, base: Path, origins: Origins) -> list[Problem]:
    """Each thing that pydantic found wrong, once, in our words."""
    texts: dict[Path, str] = {}
    missing = set()
    for item in error.errors(include_url=False):
        path, text = _words(item, model, data, base)
        texts.setdefault(path, text)
        missing |= {path} if item["type"] == "missing" else set()
    for path in list(texts):  # a list with a bad entry is no text either, but nobody meant it to be
        if any(other[: len(path)] == path for other in texts if other != path):
            del texts[path]
    return [
        Problem(origins.order(base + path), str(origins.error(base + path, text)), path in missing)
        for path, text in texts.items()
    ]


def _words(item: Any, model: type[BaseModel], data: Any, base: Path) -> tuple[Path, str]:
    """The key and the words of one of pydantic's errors."""
    loc = item["loc"]
    if item["type"] == "rule":
        keys, text = item["ctx"]["keys"], item["ctx"]["text"]
        at, _, _ = _place(model, loc)
        return (*at, next((key for key in keys if key in (lookup(data, at) or ())), keys[0])) if keys else at, text
    if item["type"] in ("extra_forbidden", "invalid_key"):
        _, _, kind = _place(model, loc[:-1])
        return loc, _unknown(str(loc[-1]), model_in(kind) or model, base + loc[:-1])
    path, expected, _ = _place(model, loc)
    if item["type"] == "missing":
        return path, f"missing; expected {expected}"
    return path, f"expected {expected}, got {show(lookup(data, path))}"


def _place(model: type[BaseModel], loc: Path) -> tuple[Path, str, Any]:
    """The key that pydantic's location is about, the words for what is expected there, and its type."""
    path: Path = ()
    expected, kind = "a mapping of settings", cast(Any, model)
    for part in loc:
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        inner = model_in(kind)
        if inner and part in _fields(inner):
            field = _fields(inner)[str(part)]
            kind, expected = field.annotation, phrase(field.annotation, field.metadata)
        elif inner and (extra := _extra_type(inner)) is not None and isinstance(part, str):
            kind, expected = extra, phrase(extra)
        elif get_origin(kind) is list and isinstance(part, int) or get_origin(kind) is dict:
            kind = get_args(kind)[-1]
            expected = phrase(kind)
        else:  # not a key but the name that pydantic gives to an alternative of a union
            kind = next((arg for arg in get_args(kind) if get_origin(arg) is list), None)
            continue
        path += (part,)
    return path, expected, kind


def _extra_type(model: type[BaseModel]) -> Any:
    """The type of the keys that a model allows besides its own, where it says one."""
    return getattr(model, "EXTRA", None)


def phrase(kind: Any, notes: Iterable[Any] = ()) -> str:
    """A type in plain words, for messages.

    Args:
        kind: the type.
        notes: its limits, as pydantic keeps them in a field's metadata.
    """
    notes = [inner for note in notes for inner in getattr(note, "metadata", [note])]  # a Field holds notes of its own
    for note in notes:
        if isinstance(note, Expects):
            return note.text
    form, args = get_origin(kind), get_args(kind)
    if form is Annotated:
        return phrase(args[0], [*args[1:], *notes])
    if form in (Union, types.UnionType):
        return " or ".join(phrase(arg, notes) for arg in args)
    if form is Literal:
        names = [repr(arg) for arg in args]
        return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    if form is list:
        return f"a list, each entry {phrase(args[0])}"
    if kind not in (int, float):
        return {str: "text", bool: "true or false", type(None): "null"}.get(kind, "a mapping of settings")
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}
    limits = [
        f"{sign} {getattr(note, name):g}" for note in notes for name, sign in signs.items() if hasattr(note, name)
    ]
    return " ".join(filter(None, ["an integer" if kind is int else "a number", " and ".join(limits)]))
