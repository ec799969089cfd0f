"""Commands that read: leaderboard, config, doctor."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from openood_dream._version import __version__
from openood_dream.cli.words import CONFIGURED, PATH, app, configured, finished
from openood_dream.errors import InputError


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
    """Put evaluated runs into one table: mean and standard deviation over seeds.

    Folders of OpenOOD's eval_ood.py --save-csv are read too.
    """
    from openood_dream.reports import page, render
    from openood_dream.reports import table as board
    from openood_dream.reports.runs import collect, summaries
    from openood_dream.store import artifacts, files

    frame = collect(runs)
    if frame.empty and (submission is not None or format is Format.html):
        what = "--submission" if submission is not None else "--format html"
        raise InputError(f"{what}: needs runs with an ood.csv each; files of eval_ood.py hold means alone")
    means = summaries(runs) if submission is None else []  # which are attached to an entry as they are
    table = board.table(frame, mixed, sort, published=published, summaries=means)
    if submission is not None:
        if mixed:
            raise InputError("--submission: an entry is about one data set and network; leave --mixed out")
        if out is not None or format is not Format.terminal:
            raise InputError("--submission: writes a folder of its own; leave --format and --out out")
        from openood_dream.reports import submission as entry  # which imports the detectors, and so torch

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
