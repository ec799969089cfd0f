"""What `openood-dream doctor` says: what is installed, what will run, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import textwrap
from importlib import import_module, metadata
from typing import Any

from openood_dream._version import __version__

PACKAGE = "openood-dream"


def text() -> str:
    """The whole diagnosis, a section for each subject."""
    sections = {
        f"{PACKAGE} {__version__}": machine(),
        "Packages": packages(),
        "Extras": extras(),
        "Plugins": plugins(),
        "OpenOOD": openood(),
    }
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def machine() -> list[str]:
    """Python, the system, and the devices that torch can use."""
    lines = [
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    ]
    try:  # what may be broken is imported by name, so that the rest is diagnosed all the same
        torch, ours = import_module("torch"), import_module("openood_dream.device")
    except ImportError as error:
        return [*lines, f"torch cannot be imported ({error}); install the packages below that are missing"]
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        lines.append(f"cuda:{number} is {card.name}, {card.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        built = "torch is built without CUDA" if torch.version.cuda is None else "no GPU, or no driver for it"
        lines.append(f"CUDA is not available: {built}")
    device = ours.pick_device("auto")
    dtype = ours.dtype_name(ours.pick_dtype("auto", device))
    if device.type == "cpu" and dtype != "float32":
        dtype = f"the faster of float32 and {dtype}, measured with each network"
    return [*lines, f"device: auto means {device}; precision: auto means {dtype}"]


def requirements(extra: str = "") -> dict[str, Any]:
    """The packages that this one needs, or that `extra` adds: name -> packaging's Requirement."""
    requirement_of = import_module("packaging.requirements").Requirement
    found = {}
    for line in metadata.requires(PACKAGE) or []:
        requirement = requirement_of(line)
        asked = requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        if asked if extra else requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found[requirement.name] = requirement
    return found


def fault(requirement: Any) -> str | None:
    """What is wrong with a requirement here, or None."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "missing"
    fits = requirement.specifier.contains(version, prereleases=True)
    return None if fits else f"version {version}, expected {requirement.specifier}"


def packages() -> list[str]:
    """The versions of all packages that are needed, and how to get those that are wrong."""
    try:
        needed = requirements()
    except metadata.PackageNotFoundError:
        return [f"{PACKAGE} runs from a folder and is not installed, so that its needs are unknown; pip install it"]
    faults = {name: problem for name, need in needed.items() if (problem := fault(need))}
    fine = ", ".join(f"{name} {metadata.version(name)}" for name in sorted(needed) if name not in faults)
    return [*_wrapped(fine), *(f"{name}: {problem}; pip install '{needed[name]}'" for name, problem in faults.items())]


def extras() -> list[str]:
    """Each extra: installed, or how to get it."""
    try:
        declared = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return ["unknown"]
    lines = []
    for extra in declared:
        faults = [f"{name} {problem}" for name, need in requirements(extra).items() if (problem := fault(need))]
        state = f"{', '.join(faults)}; pip install '{PACKAGE}[{extra}]'" if faults else "installed"
        lines.append(f"{extra}: {state}")
    return lines


def plugins() -> list[str]:
    """What each installed plugin registers, or what is wrong with one."""
    try:
        ours = import_module(f"{__package__}.plugins")
        ours.load_installed()
    except ValueError as error:  # an InputError, whose class may not be there
        return _wrapped(str(error))
    except ImportError as error:
        return [f"unknown: {error}"]
    lines = [f"{one.cls.__module__}: {one.kind} {one.name}" for one in ours.added()]
    return lines or ["none"]


def openood() -> list[str]:
    """Which OpenOOD there is, what of it works, and what is missing."""
    try:
        found = import_module("openood_dream.openood.host").status()
    except ImportError as error:
        return [f"unknown: {error}"]
    if not found["found"]:
        return [*found["missing"].values(), "backend: auto means standalone"]
    lines = [f"version {found['version'] or 'unknown'}, commit {found['commit'] or 'unknown'}, in {found['path']}"]
    if "error" in found:
        lines.append(f"does not work: {found['error']}")
    for kind, names in found.get("works", {}).items():
        lines += _wrapped(f"{kind}: {', '.join(names)}")
    return [*lines, *found["missing"].values(), "backend: auto means openood"]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, 116, subsequent_indent="  ")
