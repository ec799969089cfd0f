"""Commands that read: leaderboard, config, doctor."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from openood_dream._version import __version__
from openood_dream.cli.guides import guide
from openood_dream.cli.words import CONFIGURED, PATH, app, finished, read_words
from openood_dream.errors import InputError


class Format(str, Enum):
    """The form of a leaderboard."""

    terminal = "terminal"
    md = "md"
    csv = "csv"
    tex = "tex"
    html = "html"
    json = "json"


@app.command(**guide("leaderboard"))
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


@app.command(
    **CONFIGURED | {"options_metavar": "[KEY ...] [--config A.yml B.yml ... [--plugin FILE.py ...] [--key value ...]]"},
    **guide("config"),
)
def config(
    context: typer.Context,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/reference.md: every key there is.")] = False,
) -> None:
    """Explain keys and sections; without a KEY show the merged config, each value with the file that set it.

    A KEY is a dotted key, a section, or a section and a name that it may have: trainer.npos, dream.outliers.boundary,
    postprocessor.knn, network.vae. With --config the names that the config has decide which keys are explained, and each
    is shown with its value and the file behind it. Without any word: the sections.
    """
    keys, files, overrides = keys_and_files(context)
    from openood_dream import reference
    from openood_dream.sections import Sections

    if markdown and (keys or files or overrides):
        raise InputError("--markdown: prints every key there is; leave the other words out")
    if overrides and not files:
        raise InputError("config: no config to lay keys over; expected --config A.yml B.yml ...")
    found = Sections.load(files, overrides) if files else None
    if markdown:
        text = reference.markdown()
    elif keys:
        text = reference.explain(keys, found)
    else:
        text = found.listing() if found else reference.overview()
    typer.echo(text, nl=False)


def keys_and_files(context: typer.Context) -> tuple[list[str], list[str], list[str]]:
    """The keys to explain, which come first or after the last config file, the config files, and the overrides."""
    words = context.args
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    keys, context.args = words[:first], words[first:]
    named, overrides = read_words(context)
    files = [name for name in named if name.endswith((".yml", ".yaml")) or os.sep in name or Path(name).exists()]
    return [*keys, *(name for name in named if name not in files)], files, overrides


@app.command(**guide("doctor"))
def doctor() -> None:
    """Show what is installed, what will run, what is missing and how to get it."""
    from openood_dream import doctor as diagnosis

    typer.echo(diagnosis.text())
