"""Packages that may be absent, and what brings them."""

from __future__ import annotations

from importlib.util import find_spec

from openood_dream.errors import InputError

EXTRA_OF = {"matplotlib": "report", "peft": "lora", "ray": "ray", "umap": "umap"}  # by the module that is imported


def check_installed(where: str, *modules: str) -> None:
    """Checks that modules of extras can be imported, none of which is imported for it.

    Args:
        where: what needs them, such as a command or a key.
        modules: their names, keys of EXTRA_OF.

    Raises:
        InputError: one is missing.
    """
    for module in modules:
        if find_spec(module) is None:
            raise InputError(f"{where}: {module} is not installed; pip install 'openood-dream[{EXTRA_OF[module]}]'")
