"""Trainers, postprocessors and samplers of others: where they are looked for, and what names them.

A plugin is one Python file that registers something by the decorators of this package. It is found as an installed
package's entry point of the group `openood_dream.plugins`, whose value is the name of a module, or as a file that the
command line names (`--plugin my_file.py`).
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from openood_dream.config.host_names import NAMES
from openood_dream.errors import InputError, reason
from openood_dream.store.files import fingerprint, sha256

GROUP = "openood_dream.plugins"
OURS = __name__.partition(".")[0]

ClassT = TypeVar("ClassT", bound=type)


class Added(NamedTuple):
    """What somebody else registered.

    Attributes:
        kind: trainer, postprocessor or sampler.
        name: its name in configs.
        cls: its class.
        registry: where it is registered.
        models: where the model of its settings is.
        code: the sha256 of the file that defines it; None where there is no file, as in a notebook.
    """

    kind: str
    name: str
    cls: type
    registry: dict[str, Any]
    models: dict[str, Any] | None
    code: str | None


_added: list[Added] = []
_files: dict[str, tuple[str, str]] = {}  # real path of a plugin -> its path as it was given, and its sha256


def add(
    registry: dict[str, Any],
    kind: str,
    name: str,
    cls: type,
    models: dict[str, Any] | None = None,
    model: type | None = None,
) -> None:
    """Puts a class into a registry; one that is not ours must not take the place of another one.

    Args:
        registry: name -> class.
        kind: trainer, postprocessor or sampler.
        name: its name.
        cls: the class. The same class of the same module, defined anew, takes its own place.
        models: name -> model of its settings; None for a kind that has none.
        model: the model of its settings.

    Raises:
        InputError: the name exists already.
    """
    if cls.__module__.partition(".")[0] != OURS:
        there = registry.get(name)
        if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"the {kind} {name!r} exists already, in {there.__module__}; choose another name")
        if there is None and models and models.get(name, model) is not model:  # whose class is not imported yet
            raise InputError(f"the {kind} {name!r} exists already, in {models[name].__module__}; choose another name")
        if name in NAMES.get(f"get_{kind}", ()):
            raise InputError(f"the {kind} {name!r} exists already, in OpenOOD; choose another name")
        _forget([one for one in _added if one.registry is registry and one.name == name])
        _added.append(Added(kind, name, cls, registry, models, _code(cls)))
    registry[name] = cls
    if models is not None:
        models[name] = model


def added(module: str | None = None) -> list[Added]:
    """What others have registered, in that order; with `module` what its top-level package has."""
    top = module and module.partition(".")[0]
    return [one for one in _added if top in (None, one.cls.__module__.partition(".")[0])]


def is_added(cls: type) -> bool:
    """Whether somebody else than this package has registered a class."""
    return any(one.cls is cls for one in _added)


def identity(cls: type) -> dict[str, str]:
    """What belongs, beside its settings, into the hash of whatever a class makes.

    Args:
        cls: a registered class.

    Returns:
        The sha256 of the plugin file that defines it, as `plugin`; nothing for a class of this package, whose version
        is recorded with each result.
    """
    codes = [one.code for one in _added if one.cls is cls and one.code is not None]
    return {"plugin": codes[-1]} if codes else {}


def files() -> list[str]:
    """The plugin files that are loaded, as they were given, for a process that needs the same names."""
    return [given for given, _ in _files.values()]


@functools.cache
def load_installed() -> None:
    """Loads the plugins that installed packages name as entry points; once.

    Raises:
        InputError: one of them cannot be imported, registers nothing, or registers a name that exists.
    """
    for point in metadata.entry_points(group=GROUP):
        package = f"; repair it, or pip uninstall {point.dist.name}" if point.dist else ""
        with _loading(f"plugin {point.module}", point.module, package):
            import_module(point.module)


def load(paths: Iterable[str | Path]) -> None:
    """Loads plugin files, each once; one that has changed since is loaded anew.

    Args:
        paths: Python files.

    Raises:
        InputError: one of them cannot be imported, registers nothing, or registers a name that exists.
    """
    for path in (os.fspath(one) for one in paths):
        key = os.path.realpath(path)
        try:
            code = sha256(key)
        except OSError as error:
            raise InputError(f"--plugin {path}: expected a Python file ({error.strerror})") from None
        if _files.get(key, ("", ""))[1] == code:
            continue
        name = f"{Path(key).stem.replace('.', '_')}_{fingerprint(key)}"  # which no other module has
        _forget(added(name))
        with _loading(f"--plugin {path}", name):
            _run(key, name)
        _files[key] = path, code


class _Source(SourceFileLoader):
    """Compiles a file as it is now: bytecode of an earlier version is neither read nor written."""

    def path_stats(self, path: Any) -> Any:
        """Without the age of the file `path`, Python keeps no bytecode of it."""
        raise OSError


def _run(path: str, name: str) -> None:
    """Runs a file as the module `name`."""
    spec = spec_from_file_location(name, path, loader=_Source(name, path))
    assert spec is not None and spec.loader is not None  # noqa: S101 # nosec B101 (it has the loader that it was given)
    module = sys.modules[name] = module_from_spec(spec)  # where pydantic looks for the names in annotations
    spec.loader.exec_module(module)


@contextmanager
def _loading(what: str, module: str, remedy: str = "") -> Iterator[None]:
    """A block that runs the module of a plugin; what it raises becomes an InputError, and nothing of it stays."""
    before, modules = list(_added), set(sys.modules)
    try:
        yield
        if not added(module) and len(_added) == len(before):
            raise InputError("registers nothing; expected a class below @trainer, @postprocessor or @sampler")
    except (Exception, SystemExit) as error:
        _forget([one for one in _added if one not in before])
        if module not in modules:
            sys.modules.pop(module, None)
        if isinstance(error, InputError):
            raise InputError(f"{what}: {error}{remedy}") from None
        text = f"cannot be imported ({_where(error)}{type(error).__name__}: {reason(error)})"
        raise InputError(f"{what}: {text}{remedy}") from error


def _where(error: BaseException) -> str:
    """File and line that an error came from, within the plugin or what it imports."""
    if isinstance(error, SyntaxError):
        return ""  # which says so itself
    importing = (__file__, import_module.__code__.co_filename)
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename not in importing]
    outside = [one for one in frames if not one.filename.startswith("<frozen")]
    return f"{outside[0].filename}:{outside[0].lineno}: " if outside else ""


def _forget(gone: Iterable[Added]) -> None:
    for one in gone:
        _added.remove(one)
        if one.registry.get(one.name) is one.cls:
            del one.registry[one.name]
            if one.models is not None:
                del one.models[one.name]


def _code(cls: type) -> str | None:
    """The sha256 of the file that defines a class."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return sha256(Path(file)) if file and os.path.isfile(file) else None
