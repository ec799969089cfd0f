"""Whose a benchmark's root is: one benchmark's at a time."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openood_dream.config import paths
from openood_dream.datasets.settings import IMAGINED
from openood_dream.errors import InputError, show
from openood_dream.experiment import Experiment
from openood_dream.pipelines.identity import first_difference, value_word
from openood_dream.sections import RunSettings
from openood_dream.store import artifacts, files

CLAIM = "benchmark.json"
ANEW = "delete it and run again"
# Sections and keys in which two calls of one benchmark may differ: where and how it is computed, and what is asked for.
# `precision` and `compile` decide about results.
FREE = {*RunSettings.model_fields, "benchmark", "pipeline", "postprocessor", "recorder", "mark", "num_workers"} - {
    "precision",
    "compile",
}
FREE_BELOW = {"num_workers", "num_gpus", "data_dir", "cache_dir"}


class Claim:
    """A benchmark's claim to its root: benchmark.json with the config that all its runs share, and which were asked for.

    Args:
        root: the folder that the benchmark keeps everything in.
        common: its config, without those of its methods.
    """

    def __init__(self, root: Path, common: Experiment) -> None:
        self.root, self.file, self.common = root, root / CLAIM, common
        self.shared = shared_config(common, root)

    def check(self) -> None:
        """Raises InputError, which names the first key that differs, where the root is another benchmark's."""
        record = self._read()
        found = first_difference(record.get("config", self.shared), self.shared)
        if found is None:
            return
        key, there, here = found
        cache = self.common.at("dream.cache_dir")
        reuse = f", with --dream.cache_dir {shlex.quote(cache)} to reuse what was imagined" if cache else ""
        raise InputError(
            f"{self.common.where(key)}: {self.root} holds a benchmark with {value_word(there)}, not {value_word(here)}; choose "
            f"another --root{reuse}, or delete that folder"
        )

    def add(self, runs: Sequence[tuple[str, int]]) -> None:
        """Claims the root, for some runs too; each is a label and a seed.

        Raises:
            InputError: another benchmark has claimed it meanwhile.
        """
        with artifacts.exclusive(self.root):
            self.check()
            asked = [list(run) for run in dict.fromkeys([*self.runs(), *runs])]
            files.write_json(self.file, {"config": self.shared, "runs": asked})

    def runs(self) -> list[tuple[str, int]]:
        """Label and seed of each run that was ever asked for."""
        return [(label, seed) for label, seed in self._read().get("runs", [])]

    def _read(self) -> dict[str, Any]:
        if not self.file.exists():
            return {}
        record = files.read_record(self.file, {"config": dict, "runs": list}, ANEW)
        for run in record["runs"]:
            if not isinstance(run, list) or [type(part) for part in run] != [str, int]:
                raise InputError(f"{self.file}: runs: expected pairs of a label and a seed, got {show(run)}; {ANEW}")
        return record


def shared_config(common: Experiment, root: Path) -> dict[str, Any]:
    """The part of a benchmark's config that decides about the results of all its runs.

    Args:
        common: the config.
        root: the benchmark's folder; paths into it are taken from there, and others from the top, so that nothing
            depends on how the root is spelt or where the command is started.
    """
    return {key: _decisive(value, (key,), root) for key, value in common.to_dict().items() if key not in FREE}


def _decisive(value: Any, path: tuple[str, ...], root: Path) -> Any:
    if isinstance(value, dict):
        return {key: _decisive(item, (*path, key), root) for key, item in value.items() if key not in FREE_BELOW}
    is_path = path[-1] in paths.NAMES and value != IMAGINED or path in paths.KEYS and os.path.exists(str(value))
    if not isinstance(value, str) or not is_path:
        return value
    real, inside = Path(os.path.realpath(value)), Path(os.path.realpath(root))
    return str(real.relative_to(inside) if real.is_relative_to(inside) else real)
