"""Whose a benchmark's root is: one benchmark's at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openood_dream.errors import InputError
from openood_dream.experiment import Experiment, RunSettings
from openood_dream.pipelines.identity import first_difference, value_word
from openood_dream.store import artifacts, files

CLAIM = "benchmark.json"
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
        self.shared = shared_config(common)

    def check(self) -> None:
        """Raises InputError, which names the first key that differs, where the root is another benchmark's."""
        record = self._read()
        found = first_difference(record.get("config", self.shared), self.shared)
        if found is None:
            return
        key, there, here = found
        cache = self.common.at("dream.cache_dir")
        reuse = f" --dream.cache_dir {cache} (which reuses what was imagined)" if cache else ""
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
        return files.read_record(self.file) if self.file.exists() else {}


def shared_config(common: Experiment) -> dict[str, Any]:
    """The part of a benchmark's config that decides about the results of all its runs."""
    return {key: _decisive(value) for key, value in common.to_dict().items() if key not in FREE}


def _decisive(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _decisive(item) for key, item in value.items() if key not in FREE_BELOW}
