"""A benchmark: methods x seeds x detectors under one protocol, and the report on them."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from openood_dream.config.merge import quoted
from openood_dream.datasets.settings import IMAGINED
from openood_dream.errors import InputError, check_name
from openood_dream.experiment import BenchmarkSettings, Experiment, load_config
from openood_dream.parallel import ray
from openood_dream.pipelines import jobs
from openood_dream.pipelines.jobs import Job, job_experiments
from openood_dream.pipelines.test import identity_of, images_identity
from openood_dream.reports import report
from openood_dream.store import artifacts, files
from openood_dream.trainers import TRAINERS


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
        InputError: a config, a list or an image is missing or wrong.
        JobsFailed: jobs failed; what the others gave is written.
    """
    start = time.perf_counter()
    todo = benchmark_jobs(config_files, overrides, methods, seeds)
    todo[0].experiment.data.ensure()
    for one in todo:
        _check_images(one)
    out = files.writable(_root(todo[0].experiment))
    _run(todo, executor, workers)
    bad = [one for one in todo if one.mark.exists()]
    good = [one for one in todo if not one.mark.exists()]
    which = ", ".join(f"{one.method} seed {one.seed} ({one.log})" for one in bad)
    if not good:
        raise JobsFailed(f"all {len(todo)} jobs failed: {which}", None)
    with artifacts.exclusive(out):
        files.remove_unfinished(out)
        page = report.write(
            out,
            [one.experiment.run.folder for one in good],
            [one.experiment for one in good],
            time.perf_counter() - start,
            [_command(config_files, overrides, methods, seeds), *(one.command for one in todo)],
            [row for one in bad for row in jobs.failures(one)],
        )
    if bad:
        raise JobsFailed(f"{len(bad)} of {len(todo)} jobs failed: {which}", page)
    return page


def _run(todo: list[Job], executor: str, workers: int | None) -> None:
    """Does the jobs; arguments are those of `benchmark`."""
    device = todo[0].experiment.run.device
    if executor == "ray":
        for _ in ray.each(jobs.ray_worker, [(one.words, str(one.log)) for one in todo], device):
            pass
        return
    count = jobs.places(device) if workers is None else workers
    if count > 1 and len(todo) > 1:
        jobs.at_once(todo, count)
    else:
        jobs.in_turn(todo)


def benchmark_jobs(
    config_files: Sequence[str], overrides: Sequence[str], methods: Sequence[str] | None, seeds: int | None
) -> list[Job]:
    """The jobs of a benchmark, by seed and then method; arguments are those of `benchmark`.

    Args:
        config_files: config files.
        overrides: words laid over them.
        methods: some of the labels.
        seeds: how many seeds.

    Raises:
        InputError: something of their configs is wrong.
    """
    common = load_config(config_files, overrides)
    plan = common.benchmark
    if common.run.backend == "openood":
        raise common.error("backend", "the benchmark runs standalone, got 'openood'; run its methods one by one")
    chosen = list(plan.methods) if methods is None else methods
    if not chosen:
        raise InputError(f"--methods: expected some of {', '.join(plan.methods)}, got none")
    for name in chosen:
        check_name("--methods", name, plan.methods, "command line")
    if seeds is not None and not 1 <= seeds <= len(plan.seeds):
        raise InputError(f"--seeds: expected 1 to {len(plan.seeds)} (benchmark.seeds), got {seeds}")
    found = []
    for seed in plan.seeds[:seeds]:
        for name, label, varied in variants(plan, chosen):
            layers = [*map(os.fspath, config_files), *plan.methods[name]]
            words = [*overrides, "--method", quoted(label), "--seed", str(seed), *varied]
            experiment, scored = job_experiments(layers, words)
            log = _root(experiment) / "logs" / f"{label}-s{seed}.log"
            found.append(Job(label, seed, ["--config", *layers, *words], log, experiment, scored))
    return found


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
        (name, f"{name}, {word} {value}", [f"--{plan.vary}", json.dumps(value)])
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
    if cls.auxiliary and dataset.split("oe").imglist_pth != IMAGINED:
        splits.append(dataset.split("oe"))
    for split in splits:
        identity_of(split)


def _command(
    config_files: Sequence[str], overrides: Sequence[str], methods: Sequence[str] | None, seeds: int | None
) -> str:
    """The command that makes a benchmark again."""
    chosen = ["--methods", ",".join(methods)] if methods is not None else []
    chosen += ["--seeds", str(seeds)] if seeds is not None else []
    return shlex.join(["openood-dream", "benchmark", "--config", *map(os.fspath, config_files), *chosen, *overrides])
