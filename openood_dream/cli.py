"""The openood-dream command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openood_dream import __version__
from openood_dream.config import InputError

if TYPE_CHECKING:
    from openood_dream.store import Artifact

app = typer.Typer(
    name="openood-dream",
    help="Imagine out-of-distribution images with diffusion models, and prove what they are worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
UsageError = typer.BadParameter.__base__  # what a wrong word on the command line raises
# Commands that take OpenOOD's `--config A.yml B.yml --key value`: any --key may follow, so the words are read by us.
CONFIGURED = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "options_metavar": "--config A.yml B.yml ... [--key value ...]",
}


def configured(context: typer.Context) -> tuple[list[str], list[str]]:
    """The config files and the overrides of a command line."""
    files: list[str] = []
    overrides: list[str] = []
    reading = False
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


def hush() -> None:
    """Turns every progress bar off, in child processes too."""
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def common(
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    if quiet:
        hush()


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("results/digits"),
    seeds: Annotated[int, typer.Option(help="How many training seeds, 1 to 3.")] = 3,
    methods: Annotated[
        str, typer.Option(help="Methods to compare, separated by commas, or all.")
    ] = "base,oe,dream_ood",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Imagine outliers of scikit-learn's digits and compare base, OE and DREAM-OOD, from nothing, on a CPU."""
    if quiet:
        hush()
    chosen = None if methods == "all" else separated(methods)
    compare(["benchmarks/digits.yml"], ["--root", json.dumps(str(out))], chosen, seeds)


@app.command(**CONFIGURED)
def run(context: typer.Context) -> None:
    """Run any pipeline that the config names: train, train_oe, test_ood or benchmark."""
    files, overrides = configured(context)
    from openood_dream import pipelines

    with partial_results():
        finished(pipelines.run(files, overrides))


class Executor(str, Enum):
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
    from openood_dream import pipelines

    finished(pipelines.job(files, overrides))


def made(artifact: Artifact) -> None:
    """Prints where an artifact lies, and how long it took."""
    typer.echo(f"{artifact.path} ({'reused' if artifact.reused else 'made'} in {artifact.manifest['seconds']:.1f} s)")


def _stage(name: str, text: str) -> None:
    @app.command(name=name, help=text, **CONFIGURED)
    def command(context: typer.Context) -> None:
        files, overrides = configured(context)
        from openood_dream import pipelines

        made(pipelines.stage(name, files, overrides))


_stage("anchors", "Read the token embeddings T(y) of the class names.")
_stage("space", "Train the text-conditioned latent space (phase 1).")
_stage("generator", "Train a small diffusion pipeline on the ID images.")
_stage("sample", "Sample outlier embeddings (phase 2a).")


@app.command(**CONFIGURED)
def synthesize(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much and how long it will be; draw nothing.")
    ] = False,
) -> None:
    """Draw the images of the outlier embeddings (phase 2b), and judge them."""
    files, overrides = configured(context)
    from openood_dream import pipelines

    if dry_run:
        typer.echo(pipelines.dry_run(files, overrides))
        return
    artifact = pipelines.stage("synthesize", files, overrides)
    from openood_dream import quality

    judged = pipelines.stage("quality", files, overrides)
    made(artifact)
    made(judged)
    typer.echo(quality.render(judged), nl=False)


@app.command(**CONFIGURED)
def train(context: typer.Context) -> None:
    """Train one network, imagining its outliers first if it needs them."""
    files, overrides = configured(context)
    from openood_dream import pipelines
    from openood_dream.config import load_config

    finished(pipelines.hosted(load_config(files, overrides), pipelines.train))


@app.command(**CONFIGURED)
def evaluate(context: typer.Context) -> None:
    """Score a checkpoint with one postprocessor; write ood.csv and scores."""
    files, overrides = configured(context)
    from openood_dream import pipelines
    from openood_dream.config import load_config

    finished(pipelines.hosted(load_config(files, overrides), pipelines.test))


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
Out = Annotated[Path | None, typer.Option(help="PNG to write; in the config's root if not given.")]


class Method(str, Enum):
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


def draw(context: typer.Context, kind: str, classes: list[str] | None, out: Path | None, **options) -> None:
    files, overrides = configured(context)
    from openood_dream import pipelines

    finished(pipelines.plot(kind, files, overrides, classes or [], out, **options))


def separated(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


class Format(str, Enum):
    terminal = "terminal"
    md = "md"
    csv = "csv"
    tex = "tex"
    html = "html"
    json = "json"


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders of evaluated runs.")],
    format: Annotated[Format, typer.Option(help="Form of the table.")] = Format.terminal,
    out: Annotated[Path | None, typer.Option(help="File to write to instead of the terminal.")] = None,
    sort: Annotated[str, typer.Option(help="Column that orders the rows, as --format csv names it.")] = "near_auroc",
    published: Annotated[bool, typer.Option("--published", help="Add published numbers of the same data set.")] = False,
    mixed: Annotated[bool, typer.Option("--mixed", help="Allow runs that differ in data, network or epochs.")] = False,
    submission: Annotated[
        Path | None, typer.Option(help="Folder for what an entry of OpenOOD's leaderboard needs.")
    ] = None,
) -> None:
    """Put evaluated runs into one table: mean and standard deviation over seeds."""
    from openood_dream import leaderboard as board
    from openood_dream import store

    frame = board.collect(runs)
    table = board.table(frame, mixed, sort, published=published)
    if submission is not None:
        if mixed:
            raise InputError("--submission: an entry is about one data set and network; leave --mixed out")
        if out is not None or format is not Format.terminal:
            raise InputError("--submission: writes a folder of its own; leave --format and --out out")
        with store.exclusive(submission):
            finished(board.submit(frame, table, submission))
    elif format is Format.html:
        target = out or Path("report.html")
        about = {"stages": [], "settings": {}, "versions": {"openood-dream": __version__}, "figures": {}, "notes": []}
        with store.made(target.parent):
            finished(board.report(target, runs=frame, table=table, **about))
    elif out is None:
        typer.echo(board.render(table, format.value), nl=False)
    else:
        with store.made(out.parent):
            store.write_text(out, board.render(table, format.value))
        finished(out)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder images-* in the cache.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Compare an image set with its table: sha256 of every image, missing and additional ones."""
    if quiet:
        hush()
    from openood_dream import store

    count, problems, delete = store.verify(folder)
    for file, problem in problems.items():
        typer.echo(f"{file}: {problem}")
    if problems:
        typer.echo("To repair, delete these and run the same synthesize again; it draws the shards named above alone:")
        typer.echo(shlex.join(["rm", *map(str, delete)]))
        raise typer.Exit(fail(f"{folder}: {len(problems)} problems with {count} images", 1))
    typer.echo(f"{folder}: {count} images, all as recorded")


@app.command()
def doctor() -> None:
    """Show what is installed, what will run, what is missing and how to get it."""
    from openood_dream import diagnosis

    typer.echo(diagnosis.text())


def compare(*args: object) -> None:
    """Runs a benchmark and shows its leaderboard."""
    from openood_dream import pipelines

    with partial_results():
        show(pipelines.benchmark(*args))


@contextmanager
def partial_results() -> Iterator[None]:
    """Shows what a benchmark has where some of its jobs failed, and ends with exit code 1."""
    from openood_dream import pipelines

    try:
        yield
    except pipelines.JobsFailed as error:
        if error.report is not None:
            show(error.report)
        raise typer.Exit(fail(str(error), 1)) from None


def show(report: Path) -> None:
    """Prints the leaderboard that lies beside a report, and the report's path."""
    import pandas as pd

    from openood_dream import leaderboard as board

    table = pd.read_csv(report.with_name("leaderboard.csv"), keep_default_na=False, na_values=[""])
    table["notes"] = table["notes"].astype(object).fillna("")  # a column without notes is read as numbers
    typer.echo(board.render(table.astype({"seeds": "Int64"}), "terminal"))
    typer.echo(f"Report: {report}")


def finished(path: Path) -> None:
    typer.echo(str(path))


def main() -> None:
    """Entry point: bad input ends in one line and exit code 2, an interruption in 130."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else they are ignored, as by nohup
    if ours:
        signal.signal(signal.SIGINT, interrupted)
    try:
        code = app(prog_name="openood-dream", standalone_mode=False)
        if code == 130:  # what typer makes of an interruption, without a word
            fail("interrupted; run the same command again to go on where it stopped", code)
        sys.exit(code)
    except UsageError as error:
        if not sys.argv[1:] or not error.ctx or error.message == error.ctx.get_help():
            error.show()  # a command without its words asks for help
            sys.exit(2)
        help_ = f"{error.ctx.command_path} --help"
        sys.exit(fail(f"{error.format_message().rstrip('.')}; see {help_}", 2))
    except InputError as error:
        sys.exit(fail(str(error), 2))
    except (FloatingPointError, OSError) as error:  # an OSError is about the machine, so one line says it all
        sys.exit(fail(str(error), 1))
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(*_: object) -> None:
    """The first interruption lets a run clean up and say how to go on, the second one stops it at once."""
    signal.signal(signal.SIGINT, stopped)
    raise KeyboardInterrupt


def stopped(*_: object) -> None:
    os.write(2, b"openood-dream: error: interrupted again; stopped at once\n")  # print may be what was interrupted
    os._exit(130)


def fail(text: str, code: int) -> int:
    print(f"openood-dream: error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
