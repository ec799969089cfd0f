"""Commands that run whole jobs: quickstart, run, benchmark, train, evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from openood_dream import cores, ending
from openood_dream.cli.guides import guide
from openood_dream.cli.own import Data, HoldOut, Ood, prepared
from openood_dream.cli.words import CONFIGURED, PATH, Quiet, app, configured, finished, separated
from openood_dream.cli.worker import serve


@app.command(**guide("quickstart"))
def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything is written.", metavar="PATH", **PATH)] = Path(
        "results/digits"
    ),
    seeds: Annotated[int, typer.Option(help="How many training seeds, 1 to 3.")] = 3,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas, or all.")
    ] = "base,oe,dream_ood",
    quiet: Quiet = False,
) -> None:
    """Imagine outliers of scikit-learn's digits and compare base, OE and DREAM-OOD, from nothing, on a CPU."""
    chosen = None if methods == "all" else separated(methods)
    compare(["benchmarks/digits.yml"], [f"--root={out}"], chosen, seeds, "local", min(2, cores.granted()))


@app.command(**CONFIGURED, **guide("run"))
def run(context: typer.Context) -> None:
    """Run any pipeline that the config names: train, train_oe, test_ood or benchmark."""
    files, overrides = configured(context)
    from openood_dream import run as runner

    with partial_results():
        finished(runner.run(files, overrides))


class Executor(str, Enum):
    """Where the jobs of a benchmark run."""

    local = "local"
    ray = "ray"


@app.command(**CONFIGURED, **guide("benchmark"))
def benchmark(
    context: typer.Context,
    data: Data = None,
    ood: Ood = None,
    hold_out: HoldOut = None,
    methods: Annotated[str | None, typer.Option(help="Some of benchmark.methods, separated by commas.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many of benchmark.seeds.")] = None,
    executor: Annotated[Executor, typer.Option(help="Where jobs run: here, or on a Ray cluster.")] = Executor.local,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time, here; default: as GPUs or cores allow.")
    ] = None,
) -> None:
    """Compare methods over seeds and postprocessors, and write the leaderboard and the report."""
    files, overrides = prepared(context, data, ood, hold_out)
    compare(files, overrides, None if methods is None else separated(methods), seeds, executor.value, jobs)


@app.command(**CONFIGURED, **guide("job"))
def job(context: typer.Context) -> None:
    """Train one method with one seed and score it, as a benchmark does: --config ... --method NAME --seed N."""
    files, overrides = configured(context)
    from openood_dream.pipelines import jobs

    finished(jobs.job(files, overrides))


@app.command(hidden=True)
def worker() -> None:
    """Do the jobs of a benchmark that come in on standard input, a line each; answer with their exit codes."""
    serve()


@app.command(**CONFIGURED, **guide("train"))
def train(context: typer.Context) -> None:
    """Train one network, imagining its outliers first if it needs them."""
    hosted("train", context)


class Evaluator(str, Enum):
    """Whose evaluation it is."""

    config = "config"
    openood = "openood"


@app.command(**CONFIGURED, **guide("evaluate"))
def evaluate(
    context: typer.Context,
    evaluator: Annotated[
        Evaluator,
        typer.Option(help="Who scores: what the config says, or OpenOOD's Evaluator, by which its leaderboard goes."),
    ] = Evaluator.config,
) -> None:
    """Score a checkpoint with one postprocessor; write ood.csv and scores."""
    if evaluator is Evaluator.config:
        hosted("test", context)
        return
    files, overrides = configured(context)
    from openood_dream.experiment import load_config
    from openood_dream.openood.evaluator import evaluate as by_openood

    finished(by_openood(load_config(files, overrides)))


def hosted(kind: str, context: typer.Context) -> None:
    """Trains or tests in OpenOOD or here, as the config says, and prints the run's folder."""
    files, overrides = configured(context)
    from openood_dream import run as runner
    from openood_dream.experiment import load_config

    finished(runner.hosted(load_config(files, overrides), runner.train if kind == "train" else runner.test))


def compare(*args: Any) -> None:
    """Runs a benchmark and shows its leaderboard."""
    from openood_dream.pipelines import benchmark as benchmarking

    with partial_results():
        show(benchmarking.benchmark(*args))


@contextmanager
def partial_results() -> Iterator[None]:
    """Shows what a benchmark has where some of its jobs failed, and ends with exit code 1."""
    from openood_dream.pipelines.benchmark import JobsFailed

    try:
        yield
    except JobsFailed as error:
        if error.report is not None:
            show(error.report)
        ending.fail(str(error))
        raise typer.Exit(ending.FAILURE) from None


def show(report: Path) -> None:
    """Prints the leaderboard that lies beside a report, where the imagined images are, and the report's path."""
    import pandas as pd

    from openood_dream.reports.render import render

    table = pd.read_csv(report.with_name("leaderboard.csv"), keep_default_na=False, na_values=[""])
    table["notes"] = table["notes"].astype(object).fillna("")  # a column without notes is read as numbers
    typer.echo(render(table.astype({"seeds": "Int64"}), "terminal"))
    for method, images in json.loads(report.with_name("imagined.json").read_text(encoding="utf-8")).items():
        typer.echo(
            f"Images that {method} learned from: {images['kept']} of {images['images']} in {images['folder']}, listed in "
            f"{images['list']}"
        )
    typer.echo(f"Report: {report}")
