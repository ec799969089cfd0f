"""Our factories in the place of OpenOOD's, by name, in the modules of OpenOOD 1.5 that bind them; reversible."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any, NamedTuple

from openood_dream import plugins
from openood_dream.errors import InputError
from openood_dream.openood import compat, factories

INSTALL = "pip install --no-deps git+https://github.com/Jingkang50/OpenOOD"

# factory -> the wing of OpenOOD that defines it, and the parameters that it has in OpenOOD 1.5
FACTORIES = {
    "get_trainer": ("trainers", ["net", "train_loader", "val_loader", "config"]),
    "get_preprocessor": ("preprocessors", ["config", "split"]),
    "get_network": ("networks", ["network_config"]),
    "get_postprocessor": ("postprocessors", ["config"]),
    "get_evaluator": ("evaluators", ["config"]),
    "get_pipeline": ("pipelines", ["config"]),
}
_PIPELINES = (
    "feat_extract feat_extract_opengan finetune test_acc test_ad test_ood train_ad train_aux train_oe train_opengan train"
).split()
# the modules of OpenOOD 1.5 that define factories or import them by name
BINDERS = (
    *(f"openood.{wing}{part}" for wing, _ in FACTORIES.values() for part in ("", ".utils")),
    "openood.datasets.utils",
    *(f"openood.pipelines.{name}_pipeline" for name in _PIPELINES),
    "openood.pipelines.test_ood_pipeline_aps",
)


class _Binding(NamedTuple):
    """A factory's name in a module of OpenOOD: what it was bound to, by OpenOOD or somebody's wrapper, and is now."""

    module: ModuleType
    name: str
    before: Callable
    ours: Callable


class _Registration:
    """What a register() did, and how it is undone."""

    def __init__(self) -> None:
        self.bindings: list[_Binding] = []
        self.undo = ExitStack()


_registrations: list[_Registration] = []  # one or none


def register() -> None:
    """Adds what is ours to OpenOOD's factories; doing it twice changes nothing.

    That is the trainers of TRAINERS that OpenOOD does not have, the preprocessor `dream`, networks `timm:<name>` and
    generative ones, their postprocessors, and those that only `evaluation_api` knows. All other names go on to what was
    there before, OpenOOD's factory or somebody's wrapper of it; an unknown one is answered with the known ones. Test
    pipelines are served from passes on disk. Call it before you import factories from OpenOOD by name: what a module of
    yours has bound stays as it is.

    Raises:
        InputError: OpenOOD is not installed, its factories are not those of version 1.5, or an installed plugin does
            not work; then nothing is changed.
    """
    if _registrations:
        return
    plugins.load_installed()
    registration = _Registration()
    with ExitStack() as stack:
        stack.enter_context(compat.faiss_takes_tensors())  # which OpenOOD's import sees to, and leaves
        registration.bindings = _bindings(registration)
        registration.undo = stack.pop_all()
    for module, name, _, ours in registration.bindings:
        setattr(module, name, ours)
    _registrations.append(registration)


def unregister() -> None:
    """Puts OpenOOD's own factories back, and leaves the bindings of others as they are."""
    while _registrations:
        registration = _registrations.pop()
        for module, name, before, ours in registration.bindings:
            if vars(module).get(name) is ours:
                setattr(module, name, before)
        registration.undo.close()


def registered() -> bool:
    """Whether OpenOOD knows what is ours."""
    return bool(_registrations)


def _bindings(registration: _Registration) -> list[_Binding]:
    """Every binding of a factory in a module of BINDERS, with ours around it; nothing is changed yet."""
    made: dict[tuple[str, int], Callable] = {}
    found = list[_Binding]()
    for module in _modules():
        for name in FACTORIES:
            before = vars(module).get(name)
            if callable(before):
                ours = made.setdefault((name, id(before)), _around(name, before, registration))
                found.append(_Binding(module, name, before, ours))
    return found


def _around(name: str, before: Callable, registration: _Registration) -> Callable:
    """Our factory around another; once its registration has ended it is that other alone, whoever may still hold it."""
    ours = factories.WRAPPERS[name](before)

    @functools.wraps(before)
    def factory(*args: Any, **kwargs: Any) -> Any:
        return (ours if registration in _registrations else before)(*args, **kwargs)

    return factory


def _modules() -> list[ModuleType]:
    """BINDERS, as far as this OpenOOD has them; InputError where it is not 1.5 or does not work."""
    if not compat.installed("openood"):
        raise InputError(f"OpenOOD is not installed; {INSTALL}, or use backend: standalone")
    try:
        with compat.enabled():
            # these import all that binds factories
            for package in ("openood.datasets", "openood.pipelines"):
                importlib.import_module(package)
            for name, (wing, parameters) in FACTORIES.items():
                _check(importlib.import_module(f"openood.{wing}.utils"), name, parameters)
    except ImportError as error:
        raise InputError(
            f"OpenOOD is installed and cannot be imported ({error}); "
            "repair it (openood-dream doctor), or use backend: standalone"
        ) from error
    return [sys.modules[name] for name in BINDERS if name in sys.modules]


def _check(module: ModuleType, name: str, parameters: list[str]) -> None:
    """Raises InputError unless a module has a factory that can be called as OpenOOD 1.5 calls it."""
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{module.__file__}: has no function {name}; expected OpenOOD 1.5 ({INSTALL})")
    signature = inspect.signature(function)
    try:
        signature.bind(*parameters)
    except TypeError:
        got, expected = ", ".join(signature.parameters), ", ".join(parameters)
        text = f"{name}({got}); expected {name}({expected}) as in OpenOOD 1.5 ({INSTALL})"
        raise InputError(f"{module.__file__}: {text}") from None
