"""A benchmark: methods x seeds x detectors under one protocol, and the report on them."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from openood_dream import plugins
from openood_dream.errors import InputError, check_name, warn
from openood_dream.experiment import Experiment, load_config
from openood_dream.extras import check_installed
from openood_dream.parallel import ray
from openood_dream.pipelines import jobs
from openood_dream.pipelines.claim import Claim
from openood_dream.pipelines.identity import check_folder
from openood_dream.pipelines.jobs import Job, job_experiments
from openood_dream.pipelines.test import identity_of, images_identity, is_scored
from openood_dream.reports import report
from openood_dream.reports.records import CONFIG, TRAINED, find, read_config, run_folders
from openood_dream.sections import BenchmarkSettings
from openood_dream.store import artifacts, files
from openood_dream.trainers.known import TRAINERS

NAMED = 5  # folders that a line names


class JobsFailed(Exception):
    """Some jobs of a benchmark failed.

    Args:
        message: which ones.
        report: the path of the report on the others, None where all failed.
    """

    def __init__(self, message: str, report: Path | None) -> None:
        super().__init__(message)
        self.report = report


@files.looked_once()
def benchmark(
    config_files: Sequence[str],
    overrides: Sequence[str],
    methods: Sequence[str] | None = None,
    seeds: int | None = None,
    executor: str = "local",
    workers: int | None = 1,
) -> Path:
    """Trains every method with every seed, scores each with every detector, and writes leaderboard and report.

    Every config and list is checked before anything is computed; finished parts are reused. The results do not depend
    on where the jobs run. A job that fails stands in the report with the end of its log, and the others go on.

    Args:
        config_files: config files with a section `benchmark`, merged left to right.
        overrides: the words `--key value` laid over them.
        methods: some labels of `benchmark.methods`; None: all.
        seeds: how many of `benchmark.seeds`, from the first; None: all.
        executor: local, or ray for a Ray cluster.
        workers: jobs at a time: 1 in this process, more in processes of their own; None: as many as there are GPUs, or
            times that this process's threads fit into the cores.

    Returns:
        The path of report.html; leaderboard.md, .csv and .json lie beside it.

    Raises:
        InputError: a config, a list or an image is missing or wrong, or a package of the extras is missing.
        JobsFailed: jobs failed; what the others gave is written.
    """
    start = time.perf_counter()
    check_installed("benchmark", "matplotlib")
    if executor == "ray":
        check_installed("executor", "ray")
    common = load_config(config_files, overrides)
    plan = Plan(config_files, overrides, common)
    todo = plan.chosen(methods, seeds)
    claim = Claim(_root(common), common)
    claim.check()
    todo[0].experiment.data.ensure()
    for one in todo:
        _check_images(one)
        if plan.begins_here(one, todo):  # else the job itself looks, once its first weights are there
            check_folder(one.experiment)
            is_scored(one.experiment.run.folder, one.scored)  # InputError for other scores
    claim.add([(one.method, one.seed) for one in todo])
    _run(todo, executor, workers)
    bad = [one for one in todo if one.mark.exists()]
    good = [one for one in todo if not one.mark.exists()]
    which = ", ".join(f"{one.method} seed {one.seed} ({one.log})" for one in bad)
    if not good:
        jobs.raise_refusal(bad)
        raise JobsFailed(f"all {len(todo)} jobs failed: {which}", None)
    others, notes = _finished_before(plan, claim, todo)
    for note in notes:
        warn(note)
    commands = [_command(config_files, overrides, methods, seeds), *(one.command for one in [*todo, *others])]
    page = _report(claim.root, [*good, *others], bad, time.perf_counter() - start, commands, notes)
    if bad:
        raise JobsFailed(f"{len(bad)} of {len(todo)} jobs failed: {which}", page)
    return page


def _report(
    root: Path, good: Sequence[Job], bad: Sequence[Job], seconds: float, commands: Sequence[str], notes: Sequence[str]
) -> Path:
    """Writes leaderboard and report; the path of report.html."""
    with artifacts.exclusive(root):
        files.remove_unfinished(root)
        return report.write(
            root,
            [one.experiment.run.folder for one in good],
            [one.experiment for one in good],
            seconds,
            commands,
            [row for one in bad for row in jobs.failures(one)],
            notes,
        )


def _finished_before(plan: Plan, claim: Claim, todo: Sequence[Job]) -> tuple[list[Job], list[str]]:
    """What the report shows besides the jobs that were asked for.

    Args:
        plan: the benchmark's jobs.
        claim: says which of them were ever asked for.
        todo: those that were asked for this time.

    Returns:
        Jobs of the benchmark that are finished, by an earlier call or alone; and lines about the other runs below the
        root.
    """
    asked = {(one.method, one.seed) for one in todo}
    known = {one.experiment.run.folder.resolve() for one in todo}
    others, notes = [], []
    there = [folder for folder in run_folders(find(claim.root, TRAINED)) if folder.resolve() not in known]
    for label, seed in dict.fromkeys([*claim.runs(), *filter(None, map(_named, there))]):
        if (label, seed) in asked:
            continue
        try:
            for one in plan.jobs([(label, seed)]):
                folder = one.experiment.run.folder
                known.add(folder.resolve())
                check_folder(one.experiment)
                if is_scored(folder, one.scored):
                    others.append(one)
        except InputError as error:
            notes.append(f"{label}, seed {seed}, is not in the report: {error}")
    strangers = [str(folder) for folder in there if folder.resolve() not in known]
    if strangers:
        more = f" and {len(strangers) - NAMED} more" if len(strangers) > NAMED else ""
        notes.append(
            f"runs that are no part of this benchmark are not in the report: {', '.join(strangers[:NAMED])}{more}"
        )
    return others, notes


def _named(folder: Path) -> tuple[str, int] | None:
    """Method and seed of the run in a folder, as its config names them; None where that cannot be read."""
    try:
        config = read_config(folder / CONFIG)
        return str(config["method"]), int(config["seed"])
    except (ValueError, LookupError, TypeError):
        return None


def _run(todo: list[Job], executor: str, workers: int | None) -> None:
    """Does the jobs, wave by wave; arguments are those of `benchmark`."""
    device, gpus = todo[0].experiment.run.device, todo[0].experiment.run.worker_gpus
    count = 1 if executor == "ray" else jobs.places(device) if workers is None else workers
    for some in jobs.waves(todo):
        if executor == "ray":
            for _ in ray.each(jobs.Worker, [(one.words, str(one.log)) for one in some], device, gpus):
                pass
        elif count > 1 and len(todo) > 1:
            jobs.at_once(some, count)
        else:
            jobs.in_turn(some)


class Plan:
    """All jobs of a benchmark, by seed and then method.

    Args:
        config_files: config files.
        overrides: words laid over them.
        common: their experiment.
    """

    def __init__(self, config_files: Sequence[str], overrides: Sequence[str], common: Experiment) -> None:
        if common.run.backend == "openood":
            raise common.error("backend", "the benchmark runs standalone, got 'openood'; run its methods one by one")
        self.files, self.overrides = [*map(os.fspath, config_files)], list(overrides)
        self.common, self.settings = common, common.benchmark

    def chosen(self, methods: Sequence[str] | None, seeds: int | None) -> list[Job]:
        """The jobs of some methods and seeds.

        Args:
            methods: some of the labels; None: all.
            seeds: how many seeds, from the first; None: all.

        Raises:
            InputError: something of their configs is wrong, or there is no such label or number of seeds.
        """
        plan = self.settings
        chosen = list(plan.methods) if methods is None else methods
        if not chosen:
            raise InputError(f"--methods: expected some of {', '.join(plan.methods)}, got none")
        for name in chosen:
            check_name("--methods", name, plan.methods, "command line")
        if seeds is not None and not 1 <= seeds <= len(plan.seeds):
            raise InputError(f"--seeds: expected 1 to {len(plan.seeds)} (benchmark.seeds), got {seeds}")
        found = [(label, seed) for seed in plan.seeds[:seeds] for _, label, _ in variants(plan, chosen)]
        return self.jobs(found)

    def jobs(self, runs: Sequence[tuple[str, int]]) -> list[Job]:
        """The jobs of some runs, each named by label and seed; a run that is not planned has none."""
        planned = {
            label: (name, varied) for name, label, varied in variants(self.settings, list(self.settings.methods))
        }
        return [
            self._job(label, seed, *planned[label])
            for label, seed in runs
            if label in planned and seed in self.settings.seeds
        ]

    def begins_here(self, job: Job, todo: Sequence[Job]) -> bool:
        """Whether a job can begin as things are: with random weights, or with weights that are made.

        Args:
            job: one of the jobs that are asked for.
            todo: those jobs.

        Raises:
            InputError: it begins with the weights of a run that is neither made nor asked for.
        """
        if job.start is None:
            return True
        if any(one.weights == job.start and not (one.weights.parent / TRAINED).exists() for one in todo):
            return False
        if not job.start.exists():
            makers = [one for one in self.chosen(None, None) if one.weights == job.start]
            if makers:
                raise InputError(
                    f"--methods: {job.method} begins with the weights of {makers[0].method}, which are not there yet "
                    f"({job.start}); add {makers[0].method}"
                )
        return True

    def _job(self, label: str, seed: int, name: str, varied: Sequence[str]) -> Job:
        layers = [*self.files, *self.settings.methods[name]]
        words = [*self.overrides, f"--method={label}", "--seed", str(seed), *varied]
        experiment, scored = job_experiments(layers, words)
        log = _root(experiment) / "logs" / f"{label}-s{seed}.log"
        return Job(label, seed, ["--config", *layers, *_plugins(), *words], log, experiment, scored)


def variants(plan: BenchmarkSettings, methods: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """Everything that a benchmark trains with a seed: each method, or with `vary` each with each value.

    Args:
        plan: the section `benchmark`.
        methods: labels of methods.

    Returns:
        The method's label, the run's label and the overrides of each.
    """
    if plan.vary is None:
        return [(name, name, []) for name in methods]
    word = plan.vary.rpartition(".")[2]
    return [
        (name, f"{name}, {word} {value}", [f"--{plan.vary}", value if isinstance(value, str) else json.dumps(value)])
        for name in methods
        for value in plan.values
    ]


def _root(experiment: Experiment) -> Path:
    return Path(experiment.run.root or "results")


def _check_images(job: Job) -> None:
    """Raises InputError for an image list of a job, or an image in it, that is not there."""
    for one in job.scored:
        images_identity(one)
    dataset, cls = job.experiment.dataset, TRAINERS[job.experiment.trainer.name]
    splits = [dataset.split("train"), dataset.split("val")]
    if cls.auxiliary and not dataset.split("oe").imagined:
        splits.append(dataset.split("oe"))
    for split in splits:
        identity_of(split)


def _command(
    config_files: Sequence[str], overrides: Sequence[str], methods: Sequence[str] | None, seeds: int | None
) -> str:
    """The command that makes a benchmark again."""
    chosen = ["--methods", ",".join(methods)] if methods is not None else []
    chosen += ["--seeds", str(seeds)] if seeds is not None else []
    layers = [*map(os.fspath, config_files), *_plugins()]
    return shlex.join(["openood-dream", "benchmark", "--config", *layers, *chosen, *overrides])


def _plugins() -> list[str]:
    """The words that load the same plugins in another process."""
    return [word for file in plugins.files() for word in ("--plugin", file)]
