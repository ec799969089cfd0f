"""Every section of a config, as frozen settings; torch is not needed for it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from openood_dream import plugins
from openood_dream.config.files import is_shipped
from openood_dream.config.listing import listing, shown_file
from openood_dream.config.merge import merge
from openood_dream.config.paths import expand_paths
from openood_dream.config.schema import (
    Expects,
    HostSection,
    Name,
    Problem,
    Section,
    Seed,
    check,
    each_once,
    host_sections,
    name_file,
    raise_first,
    rule,
    schema_keys,
)
from openood_dream.config.tree import Key, Origins, lookup, plain
from openood_dream.datasets.settings import (
    DatasetSettings,
    OODDatasetSettings,
    OptimizerSettings,
    PreprocessorSettings,
)
from openood_dream.dream.settings import DreamSettings
from openood_dream.errors import InputError, nearest, warn
from openood_dream.evaluators.settings import EvaluatorSettings
from openood_dream.networks.settings import AnyNetwork, network_model
from openood_dream.postprocessors.settings import PostprocessorSettings
from openood_dream.trainers.settings import TRAINER_SETTINGS, TrainerSettings

if TYPE_CHECKING:
    from typing_extensions import Self


class RunSettings(Section):
    """The keys at the top level of a config: where, how and into which folder to compute."""

    backend: Literal["auto", "openood", "standalone"] = Field(
        "auto", description="who runs the pipelines; auto: openood where it can be imported"
    )
    device: Annotated[str, Expects("auto, cpu, mps, cuda or cuda:N")] = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto: a GPU where there is one"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number format of training")
    compile: bool = Field(
        False, description="standalone: whether torch.compile makes the network faster before it is trained"
    )
    resume: bool = Field(True, description="standalone: whether a training that was interrupted goes on")
    seed: Seed = Field(0, description="seed of training")
    executor: Literal["local", "ray"] = Field(
        "local", description="who draws images: this process, or Ray workers on many GPUs and machines"
    )
    worker_gpus: float = Field(1, gt=0, description="Ray: GPUs of a worker; 0.5 lets two workers share one")
    root: Name | None = Field(None, description="folder that a benchmark keeps everything in")
    data_root: Name = Field("data", description="folder that a built-in benchmark is written into")
    output_dir: Name | None = Field(None, description="folder of the run; load_config appends exp_name to it")
    exp_name: Name | None = Field(None, description="name of the run's folder below output_dir")
    method: Name | None = Field(None, description="what the run is called in tables; else its trainer's name")
    merge_option: Literal["default", "merge", "pass"] = Field(
        "default", description="OpenOOD: what happens where output_dir exists; our runs replace nothing"
    )
    save_output: bool = Field(True, description="OpenOOD: whether anything is written")
    num_gpus: int | None = Field(None, ge=0, description="OpenOOD's number of processes on a machine; 0: the CPU")
    num_machines: int | None = Field(None, ge=1, description="OpenOOD's number of machines")
    machine_rank: int | None = Field(None, ge=0, description="OpenOOD: which of the machines this is")

    @field_validator("worker_gpus")
    @classmethod
    def _shares_or_whole(cls, gpus: float) -> float:
        rule(
            gpus < 1 or gpus == int(gpus), f"expected a share of one GPU, such as 0.5, or a whole number, got {gpus:g}"
        )
        return gpus

    @property
    def folder(self) -> Path:
        """The run's folder; InputError where the config does not say it."""
        if self.output_dir is None:
            raise self.error("output_dir", "missing; add a config file that sets it, or --output_dir")
        return Path(self.output_dir)


class PipelineSettings(HostSection):
    """`pipeline`: what is run."""

    section = "pipeline"
    HOST_KEYS = ("extract_target",)

    name: Name | None = Field(None, description="train, train_oe, test_ood or benchmark; or one of OpenOOD's")


class RecorderSettings(HostSection):
    """`recorder`: what OpenOOD keeps of a run; our runs keep what they need."""

    section = "recorder"
    SILENT = ("name", "best_model_basis", "save_all_models", "save_csv", "save_scores")
    HOST_NAMES = tuple("base ad arpl cider cutpaste dcae draem dsvdd kdad opengan palm rd4ad".split())


class BenchmarkSettings(Section):
    """`benchmark`: methods x seeds x postprocessors."""

    section = "benchmark"

    methods: Annotated[dict[str, list[Name]], Expects("a mapping of labels to lists of config files")] = Field(
        description="label -> config files laid over the common config; the label names the run's folder"
    )
    seeds: list[Seed] = Field(description="seeds that every method is trained with")
    postprocessors: list[Name] = Field(
        description="detectors that score every trained network; a method's own files may name others for it"
    )

    vary: Name | None = Field(None, description="a key that each method is trained with all `values` of")
    values: list[float | int | str] = Field([], description="values of the key `vary`; the report plots against them")

    @field_validator("methods")
    @classmethod
    def _labels_name_folders(cls, methods: dict[str, list[str]]) -> dict[str, list[str]]:
        rule(len(methods) > 0, "expected at least one label with its config files, got an empty mapping")
        for label in methods:
            name_file(label, "labels")
        return methods

    @field_validator("seeds", "postprocessors")
    @classmethod
    def _distinct(cls, values: list) -> list:
        each_once(values)
        return values

    @model_validator(mode="after")
    def _both_or_none(self) -> BenchmarkSettings:
        rule((self.vary is None) == (not self.values), "expected vary and values together", "vary", "values")
        return self


class HostTrainer(TrainerSettings):
    """`trainer`: the training method; a name that is none of ours OpenOOD may know."""

    model_config = ConfigDict(extra="allow")

    name: Name = Field(description="the training method")


def section_models(values: Mapping[str, Any]) -> dict[str, type[Section]]:
    """The model of every section, for the names of trainer and network in these values."""
    return {
        "dataset": DatasetSettings,
        "ood_dataset": OODDatasetSettings,
        "preprocessor": PreprocessorSettings,
        "network": network_model(lookup(values, ("network", "name"))),
        "pipeline": PipelineSettings,
        "trainer": TRAINER_SETTINGS.get(str(lookup(values, ("trainer", "name"))), HostTrainer),
        "optimizer": OptimizerSettings,
        "evaluator": EvaluatorSettings,
        "postprocessor": PostprocessorSettings,
        "recorder": RecorderSettings,
        "dream": DreamSettings,
        "benchmark": BenchmarkSettings,
    }


# top-level keys that OpenOOD's programs read
HOST_TOP = (
    "R baseline c continue_train dataset_name direction_loss_only feature_dim force_merge image_auroc_only lamda "
    "last_checkpoint learning_rate loss lr lr_milestones mark metrics mode name normal_class num_classes num_workers objective "
    "resize_factor resize_fix sample_from sample_number select sim_lambda start_epoch temperature trainer_name use_gt "
    "warm_up_n_epochs weight_decay"
).split()


class Sections:
    """A validated config: a frozen, typed settings object for each section.

    Asking for a section that the config lacks, or that lacks a key, raises InputError; `has` says whether it is there.
    """

    def __init__(self, values: dict[str, Any], origins: Origins | None = None) -> None:
        """Validates a merged config.

        Args:
            values: plain dicts and lists, references resolved; taken over.
            origins: who set each key, for messages.

        Raises:
            InputError: names file and key of the first mistake in the order of the files; keys that are missing are a
                mistake when their section is asked for.
        """
        self._values, self._origins = values, origins or Origins()
        self._origins.lenient = values.get("backend") == "openood"
        expand_paths(values, self._origins)
        own = {key: value for key, value in values.items() if key in RunSettings.model_fields}
        run, problems = check(RunSettings, own, (), self._origins)
        self._sections: dict[str, Section] = {}
        self._incomplete: dict[str, list[Problem]] = {}  # sections that lack keys, which matters to who needs them
        for name, model in section_models(values).items():
            if values.get(name) is None:
                continue
            section, wrong = check(model, values[name], (name,), self._origins)
            if section is not None:
                self._sections[name] = section
            elif all(problem.missing for problem in wrong):
                self._incomplete[name] = wrong
            else:
                problems += [problem for problem in wrong if not problem.missing]
        raise_first([*problems, *self._misspelt()])
        assert run is not None  # noqa: S101 # nosec B101 (without problems there is one)
        self.run = run

    @classmethod
    def load(cls, files: str | Path | Iterable[str | Path], overrides: Iterable[str] = ()) -> Self:
        """The sections that config files describe.

        Args:
            files: YAML files in OpenOOD's grammar, merged left to right, each after its includes. One that is not there
                is looked up among the shipped configs (`shipped_configs()`).
            overrides: the words `--key.sub value` of a command line.

        Raises:
            InputError: names file and key of the first mistake in the order of the files; or a plugin does not work.
        """
        if isinstance(files, (str, Path)):
            files = [files]
        if isinstance(overrides, str):
            raise InputError(f"overrides: expected a list of words such as ['--seed', '3'], got the text {overrides!r}")
        plugins.load_installed()
        try:
            values, origins = merge(files, overrides, known_keys, switches=SWITCHES, sections=section_models({}))
        except RecursionError:
            raise InputError("the configs are nested too deeply") from None
        folder, name = values.get("output_dir"), values.get("exp_name")
        if isinstance(folder, str) and isinstance(name, str):  # as OpenOOD does once all else is settled
            values["output_dir"] = os.path.join(folder, name)
        return cls(values, origins)

    def __setattr__(self, name: str, value: Any) -> None:
        if "run" in vars(self):  # which is set last
            raise AttributeError(f"{name} cannot be set: a config is frozen; changed() gives another one")
        super().__setattr__(name, value)

    def _misspelt(self) -> list[Problem]:
        """Top-level keys that nobody reads: neither we, nor OpenOOD, nor a reference."""
        ours = [*RunSettings.model_fields, *section_models({}), "include"]
        found = []
        for key in self._values:
            if key in ours or key in HOST_TOP or key in self._origins.read:
                continue
            # at 0.8 a typo of ours is caught, and no key of another plugin is taken for one
            near = nearest(key.lower(), ours, 0.8 if self._origins.lenient else 0.6)
            if near or not self._origins.lenient:
                hint = f"did you mean {near!r}?" if near else "a key of another OpenOOD plugin needs backend: openood"
                line = str(self._origins.error((key,), f"unknown key; {hint}"))
                found.append(Problem(self._origins.of((key,)).order, line))
        return found

    def warn_unread(self) -> None:
        """Warns of keys that OpenOOD alone reads, where a file that is not shipped, or the command line, has set them."""
        for section in self._sections.values():
            for one in host_sections(section):
                for key in one.unread():
                    if not is_shipped(self._origins.of((*one.path, key)).file):
                        warn(f"{one.where(key)}: OpenOOD alone reads it; the standalone backend trains without")

    # ------------------------------------------------------------------------------------------------- the sections

    def has(self, section: str) -> bool:
        """Whether the config has all of a section."""
        return section in self._sections

    def _section(self, name: str) -> Any:
        raise_first(self._incomplete.get(name, []))
        if name not in self._sections:
            raise self.error(name, "missing; add a config file that sets it")
        return self._sections[name]

    @property
    def dataset(self) -> DatasetSettings:
        """`dataset`: the in-distribution images."""
        return self._section("dataset")

    @property
    def ood_dataset(self) -> OODDatasetSettings:
        """`ood_dataset`: the images to be told from them."""
        return self._section("ood_dataset")

    @property
    def preprocessor(self) -> PreprocessorSettings:
        """`preprocessor`: augmentation; OpenOOD's base where the config says nothing."""
        return self._section("preprocessor") if self.has("preprocessor") else PreprocessorSettings()

    @property
    def network(self) -> AnyNetwork:
        """`network`: the classifier or generative model."""
        return self._section("network")

    @property
    def pipeline(self) -> PipelineSettings:
        """`pipeline`: what is run; without a name where the config says nothing."""
        return self._section("pipeline") if self.has("pipeline") else PipelineSettings()

    @property
    def trainer(self) -> TrainerSettings:
        """`trainer`: the training method."""
        return self._section("trainer")

    @property
    def optimizer(self) -> OptimizerSettings:
        """`optimizer`: how networks are trained."""
        return self._section("optimizer")

    @property
    def evaluator(self) -> EvaluatorSettings:
        """`evaluator`: how metrics are computed."""
        return self._section("evaluator") if self.has("evaluator") else EvaluatorSettings()

    @property
    def postprocessor(self) -> PostprocessorSettings:
        """`postprocessor`: the detector."""
        return self._section("postprocessor")

    @property
    def dream(self) -> DreamSettings:
        """`dream`: the imagination."""
        return self._section("dream")

    @property
    def benchmark(self) -> BenchmarkSettings:
        """`benchmark`: what is compared."""
        return self._section("benchmark")

    @property
    def method(self) -> str:
        """What the run is called in tables: its label in a benchmark, else its trainer's name."""
        return self.run.method or self.trainer.name

    # ------------------------------------------------------------------------------------------------- the raw keys

    def at(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key such as "dream.outliers.k", or `default` where the config has none."""
        return copy.deepcopy(lookup(self._values, key.split("."), default))

    def where(self, key: str) -> str:
        """The beginning of a message about a dotted key: the file that set it, where known, and the key."""
        return self._origins.where(key.split("."))

    def source(self, key: str) -> str:
        """The file that set a dotted key, as a command line names it, or the command line."""
        return shown_file(self._origins.of(key.split(".")).file)

    def error(self, key: str, text: str) -> InputError:
        """The InputError that says `text` about a dotted key."""
        return self._origins.error(key.split("."), text)

    def to_dict(self) -> dict[str, Any]:
        """A copy of all keys as plain dicts and lists, for YAML."""
        return plain(self._values)

    def listing(self) -> str:
        """All keys as YAML, each value with the file that set it as a comment."""
        return listing(self._values, self._origins)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Another config with some dotted keys set to other values (a section is replaced as a whole)."""
        values = plain(self._values)
        for key, value in changes.items():
            *path, last = key.split(".")
            section = values
            for part in path:
                section = section.setdefault(part, {})
            section[last] = plain(value)
        return type(self)(values, self._origins)


# keys of truth values, which need no value on the command line
SWITCHES = [name for name, field in RunSettings.model_fields.items() if field.annotation is bool]


def known_keys(values: Mapping[str, Any]) -> dict[str, Key]:
    """Every dotted key that a config may have, for its trainer and network, and what its model knows of it."""
    known = dict(schema_keys(RunSettings))
    for name, model in section_models(values).items():
        known |= {name: Key(Any, False)} | dict(schema_keys(model, f"{name}."))
    return known
