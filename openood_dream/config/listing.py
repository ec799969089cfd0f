"""A merged config as text that says where each value comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openood_dream.config import tree
from openood_dream.config.files import shipped_configs
from openood_dream.config.merge import quoted


def listing(values: Mapping[str, Any], origins: tree.Origins) -> str:
    """A merged config as YAML, each value with the file that set it as a comment.

    Args:
        values: plain dicts and lists.
        origins: who set each key.
    """
    return "".join(f"{line}\n" for line in _lines(values, origins, ()))


def _lines(values: Mapping[str, Any], origins: tree.Origins, path: tree.Path) -> Iterator[str]:
    indent = "  " * len(path)
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{quoted(key)}:"
            yield from _lines(value, origins, (*path, key))
        else:
            file = shown_file(origins.of((*path, key)).file)
            yield f"{indent}{quoted(key)}: {shown_value(value)}" + (f"  # {file}" if file else "")


def shown_value(value: Any) -> str:
    """A value as YAML in one line."""
    return quoted(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def shown_file(file: str) -> str:
    """A file as a command line names it: a shipped one below the folder of the shipped configs."""
    path, shipped = Path(os.path.normpath(file)), shipped_configs()
    return file and (path.relative_to(shipped).as_posix() if path.is_relative_to(shipped) else str(path))
