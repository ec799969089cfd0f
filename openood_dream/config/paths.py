"""Paths in a config and on the command line: ~ is the home folder, and a variable of the shell that is left in one is a mistake."""

from __future__ import annotations

import os
import re

from openood_dream.config.tree import Origins, Path, Tree
from openood_dream.errors import show

# keys whose value is a path wherever they stand, and those that hold a path, a name or settings
NAMES = {"root", "data_root", "output_dir", "cache_dir", "imglist_pth", "data_dir", "checkpoint"}
KEYS = {("dream", "generator"), ("dream", "class_names")}


def expand_paths(values: Tree, origins: Origins, path: Path = ()) -> None:
    """Expands ~ in every path of a config.

    Args:
        values: a config, or a section of it; changed in place.
        origins: who set its keys.
        path: the keys that lead to `values`.

    Raises:
        InputError: a path holds a variable of the shell, or the home folder of a user that there is not.
    """
    for key, value in values.items():
        place = (*path, key)
        if isinstance(value, dict):
            expand_paths(value, origins, place)
        elif isinstance(value, str) and (key in NAMES or place in KEYS):
            try:
                values[key] = expanded(value)
            except ValueError as error:
                raise origins.error(place, str(error)) from None


def expanded(path: str) -> str:
    """A path with ~ expanded; ValueError where a variable of the shell is left in it, or nobody has that home folder."""
    if re.search(r"\$(\w|\{)", path):
        raise ValueError(f"expected a path, got {show(path)} with a variable; write its value, here nobody replaces it")
    if long := next((part for part in path.split(os.sep) if len(os.fsencode(part)) > 255), None):
        raise ValueError(f"expected names of at most 255 bytes in a path, got {len(os.fsencode(long))}: {show(long)}")
    found = os.path.expanduser(path)
    if found.startswith("~") and re.match(r"~[^/]*(/|$)", found):
        raise ValueError(f"expected a path, got {show(path)}; there is no such home folder (./~ is a folder named ~)")
    return found
