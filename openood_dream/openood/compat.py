"""OpenOOD 1.5 on today's libraries, and on a machine without CUDA: on request, and undone completely.

`enabled(cpu=...)` is a context manager; `enable()` and `disable()` are the same for a main.py. Inside,
- names that NumPy 2 removed and OpenOOD or imgaug use are back;
- extras that are missing or broken import as stand-ins, which raise an InputError naming the package when they are used;
- faiss takes tensors, as OpenOOD's npos wants it;
- a `merge_option: default` run whose folder exists fails instead of waiting for an answer that nobody can give;
- with `cpu`, whatever asks for CUDA gets the CPU: `.cuda()`, `device='cuda'`, checkpoints, GPU indexes of faiss.
"""

from __future__ import annotations

import atexit
import builtins
import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from openood_dream.errors import InputError, reason

# package -> what of OpenOOD needs it, and what to install
EXTRAS = {
    "cv2": ("the preprocessor draem and the evaluator patch", "opencv-python-headless"),
    "diffdist": ("the trainer csi", "diffdist"),
    "faiss": ("the postprocessors knn, nnguide, cider and npos and the trainers npos and udg", "faiss-cpu"),
    "foolbox": ("the attacks of evaluation_api", "foolbox"),
    "gdown": ("the downloads of evaluation_api", "gdown"),
    "imgaug": ("the preprocessor draem", "imgaug"),
    "libmr": ("the postprocessor openmax", "libmr"),
    "statsmodels": ("the postprocessors adascale_a and adascale_l", "statsmodels"),
}
_MISSING = object()
_broken: dict[str, str] = {}  # packages that are there and cannot be imported, and why


def missing() -> dict[str, str]:
    """What of OpenOOD cannot be used here, one line for each package that is not installed or broken."""
    with replaced(np, **_numpy_names()):  # without which NumPy 2 breaks some
        return {name: lack(name) for name in EXTRAS if not _works(name)}


def installed(name: str) -> bool:
    """Whether a package is there, for real."""
    return _spec(name) is not None


def folder(name: str) -> str:
    """Where an installed package lies."""
    spec = _spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{name} is not installed as a package")
    return list(spec.submodule_search_locations)[0]


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where any finder but ours has a package; editable ones are not on the path, and a mere folder is none."""
    finders = [finder for finder in sys.meta_path if not isinstance(finder, _Extras)]
    specs = filter(None, (finder.find_spec(name, None) for finder in finders))
    return next((spec for spec in specs if spec.origin is not None), None)


def lack(name: str) -> str:
    """The line that says what a missing or broken package disables and how to get it."""
    user, package = EXTRAS[name]
    if name in _broken:
        why = f"cannot be imported ({_broken[name]}); repair it, or pip uninstall {package}"
        return f"OpenOOD needs {name} for {user}, and it {why}"
    return f"OpenOOD needs {name} for {user}, and it is not installed; pip install {package}"


def _works(name: str) -> bool:
    """Whether an extra is there and can be imported; a broken one is known from then on."""
    if not installed(name):
        return False
    if name not in _broken and not isinstance(sys.modules.get(name), ModuleType):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises
            _broken[name] = reason(error)
    return name not in _broken


# ------------------------------------------------------------------------------------------------------- stand-ins


class _StandIn(type):
    """A class of a package that is not there: it can be imported and subclassed, and says what is missing when used."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise InputError(lack(cls.package))

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(cls.package, name)


def _stand_in(package: str, name: str) -> type:
    return type.__call__(_StandIn, name, (), {"package": package})


class _StandInModule(ModuleType):
    __path__: list[str] = []  # submodules can be imported too

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(self.__name__.partition(".")[0], name)


class _Extras(MetaPathFinder, Loader):
    """A finder that is asked first: it answers for known extras that do not work here."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package = name.partition(".")[0]
        stands = isinstance(sys.modules.get(package), _StandInModule)
        if package in EXTRAS and (stands if name != package else package in _broken or not installed(package)):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        self.made.append(spec.name)
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stand-in has nothing to run."""


@contextmanager
def _extras() -> Iterator[None]:
    finder = _Extras()
    for name in EXTRAS:
        _works(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:
            sys.modules.pop(name, None)  # others must see that the package is not installed


# ------------------------------------------------------------------------------------------------------ substitutes


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of `owner` for the length of the block."""
    before = {name: vars(owner).get(name, _MISSING) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _numpy_names() -> dict[str, Any]:
    """What NumPy 2 lacks of the names in use; what is there stays as it is."""
    kinds = {
        "int": [np.int8, np.int16, np.int32, np.int64],
        "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
        "float": [np.float16, np.float32, np.float64],
        "complex": [np.complex64, np.complex128],
        "others": [bool, object, bytes, str, np.void],
    }
    names = {"sctypes": kinds, "float": float, "int": int, "product": np.prod}
    return {name: value for name, value in names.items() if name not in vars(np)}


def _answer(question: str = "") -> str:
    """`input` for OpenOOD's question whether to write into a folder that exists."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise InputError(
            "output_dir exists and merge_option is default, which asks; nobody can answer here: "
            "use --merge_option merge or another mark"
        )
    return builtins.input(question)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


class _CudaIsCPU(TorchFunctionMode):
    """Torch calls whose device is CUDA run on the CPU."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in (kwargs or {}).items()})


class _CPUParallel(torch.nn.parallel.DistributedDataParallel):
    """DistributedDataParallel that takes no notice of device_ids."""

    def __init__(
        self, module: torch.nn.Module, device_ids: Any = None, output_device: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(module, **kwargs)


def _stay(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module


@contextmanager
def _on_cpu() -> Iterator[None]:
    load = torch.load

    def load_on_cpu(file: Any, map_location: Any = "cpu", **kwargs: Any) -> Any:
        return load(file, map_location=_to_cpu(map_location), **kwargs)

    with ExitStack() as stack:
        stack.enter_context(replaced(torch.Tensor, cuda=_stay))
        stack.enter_context(replaced(torch.nn.Module, cuda=_stay))
        stack.enter_context(replaced(torch.cuda, FloatTensor=torch.FloatTensor))
        stack.enter_context(replaced(torch, load=load_on_cpu))
        stack.enter_context(replaced(torch.nn.parallel, DistributedDataParallel=_CPUParallel))
        # batch norm over processes exists for GPUs alone; on the CPU each process has its own statistics
        keep = classmethod(lambda cls, module, process_group=None: module)
        stack.enter_context(replaced(torch.nn.SyncBatchNorm, convert_sync_batchnorm=keep))
        if _works("faiss"):
            faiss = importlib.import_module("faiss")
            gpu = {"StandardGpuResources": object, "GpuIndexFlatL2": lambda resources, width: faiss.IndexFlatL2(width)}
            stack.enter_context(replaced(faiss, **gpu))
        stack.enter_context(_CudaIsCPU())
        yield


# ------------------------------------------------------------------------------------------------------------ faiss

TENSORS = "faiss.contrib.torch_utils"  # which patches faiss for good when it is imported
_patched: list[tuple[dict[Any, dict[str, Any]], int]] = []  # faiss as it was, and how many want it patched now


@contextmanager
def faiss_takes_tensors() -> Iterator[None]:
    """As OpenOOD's npos has it, from its import on; after the last such block faiss is as before the first."""
    if not _works("faiss") or (not _patched and TENSORS in sys.modules):
        yield  # none, or somebody else wants it so
        return
    if not _patched:
        faiss = importlib.import_module("faiss")
        owners = [faiss, *(value for value in vars(faiss).values() if inspect.isclass(value))]
        _patched.append(({owner: dict(vars(owner)) for owner in owners}, 0))
        importlib.import_module(TENSORS)
    before, users = _patched[0]
    _patched[0] = before, users + 1
    try:
        yield
    finally:
        before, users = _patched[0]
        _patched[0] = before, users - 1
        if users == 1:
            _patched.clear()
            for owner, values in before.items():
                _restore(owner, values)
            sys.modules.pop(TENSORS, None)
            vars(sys.modules["faiss.contrib"]).pop("torch_utils", None)


def _restore(owner: Any, values: dict[str, Any]) -> None:
    """Gives a module or class the attributes that it had; submodules that were imported since stay."""
    for name, value in list(vars(owner).items()):
        if name not in values and not isinstance(value, ModuleType):
            delattr(owner, name)
    for name, value in values.items():
        if vars(owner).get(name, _MISSING) is not value:
            setattr(owner, name, value)


# ----------------------------------------------------------------------------------------------------------- switch


@contextmanager
def enabled(cpu: bool = False) -> Iterator[None]:
    """OpenOOD can be imported and run inside the block, without CUDA if `cpu`; afterwards all is as it was."""
    with ExitStack() as stack:
        stack.enter_context(replaced(np, **_numpy_names()))
        stack.enter_context(_extras())
        stack.enter_context(faiss_takes_tensors())
        if installed("openood"):
            import openood.utils.logger

            stack.enter_context(replaced(openood.utils.logger, input=_answer))
        if cpu:
            stack.enter_context(_on_cpu())
        yield


_active: list[ExitStack] = []


def enable(cpu: bool = False) -> None:
    """`enabled(cpu)` until `disable()`."""
    stack = ExitStack()
    stack.enter_context(enabled(cpu))
    _active.append(stack)
    atexit.register(disable)


def disable() -> None:
    """Undoes every `enable()`."""
    while _active:
        _active.pop().close()
    atexit.unregister(disable)
