"""A config and what it describes: its image lists, and the stages of its imagination."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from openood_dream.datasets.loaders import Data
from openood_dream.dream import chain
from openood_dream.errors import InputError
from openood_dream.postprocessors import known as detectors  # noqa: F401  (importing it registers them)
from openood_dream.sections import Sections
from openood_dream.trainers import known as trainers  # noqa: F401  (importing it registers them)


class Experiment(Sections):
    """A validated config, and what its sections describe.

    Asking for what needs a section that the config lacks, or that lacks a key, raises InputError.
    """

    @cached_property
    def data(self) -> Data:
        """The image lists of the config; each is opened once, and decoded when its images are first read."""
        ood = self.ood_dataset if self.has("ood_dataset") else None
        return Data(self.dataset, self.preprocessor, ood, self.run.data_root)

    @cached_property
    def imagination(self) -> Dream:
        """The stages of the imagination, each made when it is first asked for."""
        run = self.run
        return Dream(
            self.dream,
            self.data,
            device=run.device,
            precision=run.precision,
            executor=run.executor,
            worker_gpus=run.worker_gpus,
            network=self.network if self.has("network") else None,
            pairs=self.at("trainer.pairs") is True,
        )


class Dream(chain.Dream):
    """The imagination, stage by stage, of a config or of settings made in Python."""

    @classmethod
    def from_config(cls, *files: str | Path, overrides: Iterable[str] = ()) -> Dream:
        """The imagination that config files describe.

        Args:
            files: YAML files, merged left to right.
            overrides: words such as ("--dream.outliers.k", "5") laid over them.

        Raises:
            InputError: names file and key of the first mistake.
        """
        if len(files) == 1 and isinstance(files[0], (list, tuple)):
            raise InputError("files: expected file names one by one, from_config('a.yml', 'b.yml'), got a list")
        return load_config(files, overrides).imagination


def load_config(files: str | Path | Iterable[str | Path], overrides: Iterable[str] = ()) -> Experiment:
    """The experiment that config files describe.

    Args:
        files: YAML files in OpenOOD's grammar, merged left to right, each after its includes. One that is not there is
            looked up among the shipped configs (`shipped_configs()`).
        overrides: the words `--key.sub value` of a command line.

    Returns:
        The validated experiment.

    Raises:
        InputError: names file and key of the first mistake in the order of the files; or a plugin does not work.
    """
    return Experiment.load(files, overrides)
