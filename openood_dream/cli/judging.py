"""The command that judges images: predict."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from openood_dream import ending
from openood_dream.cli.guides import guide
from openood_dream.cli.words import PATH, Quiet, app, finished, load_plugins


class Form(str, Enum):
    """The form of verdicts."""

    table = "table"
    csv = "csv"
    json = "json"


@app.command(**guide("predict"))
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders with images anywhere in them.")],
    run: Annotated[
        Path, typer.Option("--run", help="Folder of a finished training, or of its scores.", metavar="PATH", **PATH)
    ],
    postprocessor: Annotated[
        str | None, typer.Option(help="The detector.", show_default="that of the scores, or ebo")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the ID validation images that the threshold keeps.")] = 0.95,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", show_default="as the run's config says")
    ] = None,
    format: Annotated[Form, typer.Option(help="Form of the verdicts.")] = Form.table,
    out: Annotated[
        Path | None, typer.Option(help="File to write to instead of the terminal.", metavar="PATH", **PATH)
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A Python file with a detector or network of your own.", metavar="FILE.py")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Say of images which class they are of, how sure that is, and whether they are in-distribution (ID) or OOD."""
    from openood_dream.datasets.given import find_given
    from openood_dream.pipelines.detector import Detector
    from openood_dream.reports.render import render_verdicts
    from openood_dream.store import artifacts, files

    load_plugins(plugin or [])
    given = find_given(images)
    verdicts, refused = Detector.load(run, postprocessor, keep, device=device).judge(given)
    for line in refused:
        ending.fail(line)
    if not len(verdicts):
        raise typer.Exit(ending.BAD_INPUT)
    text = render_verdicts(verdicts, format.value)
    if out is None:
        typer.echo(text, nl=False)
    else:
        with artifacts.writing_in(out.parent):
            files.write_text(out, text)
        finished(out)
    if refused:
        raise typer.Exit(ending.FAILURE)
