"""Our factories in the place of OpenOOD's, by name, in the modules of OpenOOD 1.5 that bind them; reversible."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping

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

_registered: dict[str, tuple[Callable, Callable]] = {}  # factory -> (OpenOOD's, ours)


def register() -> None:
    """Adds what is ours to OpenOOD's factories; doing it twice changes nothing.

    That is the trainers of TRAINERS that OpenOOD does not have, the preprocessor `dream`, networks `timm:<name>` and
    generative ones, their postprocessors, and those that only `evaluation_api` knows; unknown names are answered with
    the known ones, and test pipelines are served from passes on disk. Call it before you import factories from OpenOOD
    by name: what a module of yours has bound stays as it is.

    Raises:
        InputError: OpenOOD is not installed, or its factories are not those of version 1.5; then nothing is changed.
    """
    if not _registered:
        originals = {name: _original(name) for name in FACTORIES}
        for name, original in originals.items():
            _registered[name] = original, functools.wraps(original)(factories.WRAPPERS[name](originals))
    _bind(_registered)


def unregister() -> None:
    """Puts OpenOOD's own factories back."""
    _bind({name: (ours, original) for name, (original, ours) in _registered.items()})
    _registered.clear()


def registered() -> bool:
    """Whether OpenOOD knows what is ours."""
    return bool(_registered)


def original(name: str) -> Callable:
    """OpenOOD's own factory of this name, while ours stands in its place."""
    return _registered[name][0]


def _original(name: str) -> Callable:
    """OpenOOD's factory, checked to be the one that we know."""
    wing, parameters = FACTORIES[name]
    if not compat.installed("openood"):
        raise InputError(f"OpenOOD is not installed; {INSTALL}, or use backend: standalone")
    try:
        with compat.enabled():
            # these import all that binds factories
            for package in ("openood.datasets", "openood.pipelines"):
                importlib.import_module(package)
            module = importlib.import_module(f"openood.{wing}.utils")
    except ImportError as error:
        raise InputError(
            f"OpenOOD is installed and cannot be imported ({error}); "
            "repair it (openood-dream doctor), or use backend: standalone"
        ) from error
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        raise InputError(f"{module.__file__}: has no function {name}; expected OpenOOD 1.5 ({INSTALL})")
    if list(inspect.signature(function).parameters) != parameters:
        got, expected = ", ".join(inspect.signature(function).parameters), ", ".join(parameters)
        raise InputError(f"{module.__file__}: {name}({got}); expected {name}({expected}) as in OpenOOD 1.5 ({INSTALL})")
    return function


def _bind(pairs: Mapping[str, tuple[Callable, Callable]]) -> None:
    """In each of BINDERS that is loaded, binds a factory's name to the second of its pair in the place of the first."""
    for module in filter(None, map(sys.modules.get, BINDERS)):
        for name, (old, new) in pairs.items():
            if vars(module).get(name) is old:
                setattr(module, name, new)
