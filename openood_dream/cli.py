"""The openood-dream command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openood_dream import ending
from openood_dream._version import __version__
from openood_dream.errors import InputError

if TYPE_CHECKING:
    from openood_dream.store.artifacts import Artifact

app = typer.Typer(
    name="openood-dream",
    help="Imagine out-of-distribution images with diffusion models, and prove what they are worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
UsageError: type[Any] = typer.BadParameter.__base__  # type: ignore[assignment]  # what a wrong word raises
# Commands that take OpenOOD's `--config A.yml B.yml --key value`: any --key may follow, so the words are read by us.
CONFIGURED: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "options_metavar": "--config A.yml B.yml ... [--key value ...]",
}


def configured(context: typer.Context) -> tuple[list[str], list[str]]:
    """The config files and the overrides of a command line."""
    files, overrides, reading = list[str](), list[str](), False
    for word in context.args:
        if word in ("--config", "-c"):
            reading = True
        elif word.startswith("--config="):
            files.append(word.partition("=")[2])
        elif word == "--quiet":
            hush()
        elif reading and not word.startswith("-"):
            files.append(word)
        else:
            reading = False
            overrides.append(word)
    if not files:
        raise InputError(f"{context.info_name}: no config; expected --config A.yml B.yml ...")
    return files, overrides


def hush(wanted: bool = True) -> None:
    """Turns every progress bar off, in child processes too, where that is wanted."""
    if wanted:
        os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.", callback=hush)]


def user_path(word: str | Path) -> Path:
    """A path on the command line, with ~ expanded, which shells leave alone after an equals sign."""
    from openood_dream.config.paths import expanded

    try:
        return Path(expanded(str(word)))
    except ValueError as error:
        raise InputError(str(error)) from None


PATH: dict[str, Any] = {"parser": user_path}


def separated(words: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in words.split(",") if word.strip()]


def show_version(wanted: bool) -> None:
    """Prints the version where it is asked for, and ends."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def common(
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """What every command has."""


# ----------------------------------------------------------------------------------------------------- whole jobs


@app.command()
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
    compare(["benchmarks/digits.yml"], [f"--root={out}"], chosen, seeds)


@app.command(**CONFIGURED)
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


@app.command(**CONFIGURED)
def benchmark(
    context: typer.Context,
    methods: Annotated[str | None, typer.Option(help="Some of benchmark.methods, separated by commas.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many of benchmark.seeds.")] = None,
    executor: Annotated[Executor, typer.Option(help="Where jobs run: here, or on a Ray cluster.")] = Executor.local,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time, here; default: as GPUs or cores allow.")
    ] = None,
) -> None:
    """Compare methods over seeds and postprocessors, and write the leaderboard and the report."""
    files, overrides = configured(context)
    compare(files, overrides, None if methods is None else separated(methods), seeds, executor.value, jobs)


@app.command(**CONFIGURED)
def job(context: typer.Context) -> None:
    """Train one method with one seed and score it, as a benchmark does: --config ... --method NAME --seed N."""
    files, overrides = configured(context)
    from openood_dream.pipelines import jobs

    finished(jobs.job(files, overrides))


@app.command(**CONFIGURED)
def train(context: typer.Context) -> None:
    """Train one network, imagining its outliers first if it needs them."""
    hosted("train", context)


@app.command(**CONFIGURED)
def evaluate(context: typer.Context) -> None:
    """Score a checkpoint with one postprocessor; write ood.csv and scores."""
    hosted("test", context)


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
    """Prints the leaderboard that lies beside a report, and the report's path."""
    import pandas as pd

    from openood_dream.reports.render import render

    table = pd.read_csv(report.with_name("leaderboard.csv"), keep_default_na=False, na_values=[""])
    table["notes"] = table["notes"].astype(object).fillna("")  # a column without notes is read as numbers
    typer.echo(render(table.astype({"seeds": "Int64"}), "terminal"))
    typer.echo(f"Report: {report}")


# ------------------------------------------------------------------------------------------------- the imagination


def made(artifact: Artifact) -> None:
    """Prints where an artifact lies, and how long it took."""
    typer.echo(f"{artifact.path} ({'reused' if artifact.reused else 'made'} in {artifact.manifest['seconds']:.1f} s)")


def stage(name: str, text: str, *aliases: str) -> None:
    """Adds the command of a stage of the imagination, and hidden ones of its older names."""

    def command(context: typer.Context) -> None:
        files, overrides = configured(context)
        from openood_dream.pipelines import stages

        made(stages.stage(name, files, overrides))

    for number, called in enumerate([name, *aliases]):
        app.command(called, help=text, hidden=number > 0, **CONFIGURED)(command)


stage("anchors", "Read the token embeddings T(y) of the class names.")
stage("space", "Train the text-conditioned latent space (phase 1).")
stage("generator", "Train a small diffusion pipeline on the ID images.")
stage("outliers", "Sample outlier embeddings (phase 2a).", "sample")


@app.command("synthesize", hidden=True, **CONFIGURED)
@app.command(**CONFIGURED)
def imagine(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much and how long it will be; draw nothing.")
    ] = False,
) -> None:
    """Draw the images of the outlier embeddings (phase 2b), and judge them."""
    files, overrides = configured(context)
    from openood_dream.pipelines import stages
    from openood_dream.reports.render import render_quality

    if dry_run:
        typer.echo(stages.dry_run(files, overrides))
        return
    quality, images = stages.stages(["quality", "images"], files, overrides)  # in this order: a judge may be missing
    made(images)
    made(quality)
    typer.echo(render_quality(quality), nl=False)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder images-* in the cache.", **PATH)],
    quiet: Quiet = False,
) -> None:
    """Compare an image set with its table: sha256 of every image, missing and additional ones."""
    from openood_dream.dream import image_set

    count, problems, delete = image_set.verify(folder)
    for file, problem in problems.items():
        typer.echo(f"{file}: {problem}")
    if problems:
        typer.echo("To repair, delete these and run the same imagine again; it draws the shards named above alone:")
        typer.echo(shlex.join(["rm", *map(str, delete)]))
        ending.fail(f"{folder}: {len(problems)} problems with {count} images")
        raise typer.Exit(ending.FAILURE)
    typer.echo(f"{folder}: {count} images, all as recorded")


plot = typer.Typer(
    help="Draw what was imagined to a PNG, making first what is missing.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(plot, name="plot")
Classes = Annotated[
    list[str] | None, typer.Option("--class", help="Name of a class to show; may be given several times.")
]
Outliers = Annotated[
    str,
    typer.Option(
        help="What to draw beside each other, separated by commas: knn, boundary, inlier (the config with that "
        "dream.outliers.method), or config files to lay over the config; the config alone if not given."
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="PNG to write; in the config's root if not given.", metavar="PATH", **PATH)
]


class Method(str, Enum):
    """How the space becomes a plane."""

    pca = "pca"
    umap = "umap"


@plot.command(**CONFIGURED)
def embeddings(
    context: typer.Context,
    class_: Classes = None,
    method: Annotated[Method, typer.Option(help="How the space becomes a plane.")] = Method.pca,
    outliers: Outliers = "",
    out: Out = None,
) -> None:
    """Draw ID embeddings, anchors, boundary points, outliers and inliers in a plane, and their k-NN distances."""
    draw(context, "embeddings", class_, out, outliers=separated(outliers), method=method.value)


@plot.command(**CONFIGURED)
def grid(context: typer.Context, class_: Classes = None, outliers: Outliers = "", out: Out = None) -> None:
    """Draw the images of each class, or of each way of sampling, from near to far with their k-NN distances."""
    draw(context, "grid", class_, out, outliers=separated(outliers))


@plot.command(**CONFIGURED)
def line(context: typer.Context, class_: Classes = None, out: Out = None) -> None:
    """Draw a class along the line from its anchor to an outlier, in the same noise."""
    draw(context, "line", class_, out)


def draw(context: typer.Context, kind: str, classes: list[str] | None, out: Path | None, **options: Any) -> None:
    """Draws a figure and prints its path."""
    files, overrides = configured(context)
    from openood_dream.pipelines import stages

    finished(stages.plot(kind, files, overrides, classes or [], out, **options))


# --------------------------------------------------------------------------------------------------------- reading


class Format(str, Enum):
    """The form of a leaderboard."""

    terminal = "terminal"
    md = "md"
    csv = "csv"
    tex = "tex"
    html = "html"
    json = "json"


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders of evaluated runs.", **PATH)],
    format: Annotated[Format, typer.Option(help="Form of the table.")] = Format.terminal,
    out: Annotated[
        Path | None, typer.Option(help="File to write to instead of the terminal.", metavar="PATH", **PATH)
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="Column that orders the rows, as --format csv names it.", show_default="near_auroc"),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Add published numbers of the same data set.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Allow runs that differ in data, network or epochs.")] = False,
    submission: Annotated[
        Path | None,
        typer.Option(help="Folder for what an entry of OpenOOD's leaderboard needs.", metavar="PATH", **PATH),
    ] = None,
) -> None:
    """Put evaluated runs into one table: mean and standard deviation over seeds."""
    from openood_dream.reports import page, render
    from openood_dream.reports import submission as entry
    from openood_dream.reports import table as board
    from openood_dream.reports.runs import collect
    from openood_dream.store import artifacts, files

    frame = collect(runs)
    table = board.table(frame, mixed, sort, published=published)
    if submission is not None:
        if mixed:
            raise InputError("--submission: an entry is about one data set and network; leave --mixed out")
        if out is not None or format is not Format.terminal:
            raise InputError("--submission: writes a folder of its own; leave --format and --out out")
        with artifacts.exclusive(submission):
            finished(entry.submit(frame, table, submission))
    elif format is Format.html:
        target = out or Path("report.html")
        with artifacts.writing_in(target.parent):
            finished(page.report(target, runs=frame, table=table, versions={"openood-dream": __version__}))
    elif out is None:
        typer.echo(render.render(table, format.value), nl=False)
    else:
        with artifacts.writing_in(out.parent):
            files.write_text(out, render.render(table, format.value))
        finished(out)


@app.command(**CONFIGURED)
def config(context: typer.Context) -> None:
    """Show the merged config as YAML, each value with the file that set it."""
    files, overrides = configured(context)
    from openood_dream.experiment import load_config

    typer.echo(load_config(files, overrides).listing(), nl=False)


@app.command()
def doctor() -> None:
    """Show what is installed, what will run, what is missing and how to get it."""
    from openood_dream import doctor as diagnosis

    typer.echo(diagnosis.text())


# ---------------------------------------------------------------------------------------------------------- ending


def finished(path: Path) -> None:
    """Prints where the result lies."""
    typer.echo(str(path))


def main() -> None:
    """Entry point: bad input ends in one line and exit code 2, an interruption in 130."""
    sys.exit(ending.exit_code(command))


def command() -> int | None:
    """The command that the words of the command line ask for; returns its exit code."""
    try:
        return app(prog_name="openood-dream", standalone_mode=False)
    except UsageError as error:
        if not sys.argv[1:] or not error.ctx or error.message == error.ctx.get_help():
            error.show()  # a command without its words asks for help
            return ending.BAD_INPUT
        help_ = f"{error.ctx.command_path} --help"
        raise InputError(f"{error.format_message().rstrip('.')}; see {help_}") from None


if __name__ == "__main__":
    main()
