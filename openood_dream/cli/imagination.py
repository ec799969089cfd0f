"""Commands of the imagination: its stages, verify and plot."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openood_dream import ending
from openood_dream.cli.guides import guide
from openood_dream.cli.own import Data, HoldOut, Ood, prepared
from openood_dream.cli.words import CONFIGURED, PATH, Quiet, app, configured, finished, separated
from openood_dream.errors import printable

if TYPE_CHECKING:
    from openood_dream.store.artifacts import Artifact


def made(artifact: Artifact) -> None:
    """Prints where an artifact lies, and whether it was there already, or else how long it took."""
    how = "reused" if artifact.reused else f"made in {artifact.manifest['seconds']:.1f} s"
    typer.echo(f"{artifact.path} ({how})")


def stage(name: str, text: str, *aliases: str) -> None:
    """Adds the command of a stage of the imagination, and hidden ones of its older names."""

    def command(context: typer.Context) -> None:
        files, overrides = configured(context)
        from openood_dream.pipelines import stages

        made(stages.stage(name, files, overrides))

    for number, called in enumerate([name, *aliases]):
        app.command(called, help=text, hidden=number > 0, **CONFIGURED, **guide(name))(command)


stage("anchors", "Read the token embeddings T(y) of the class names.")
stage("space", "Train the text-conditioned latent space (phase 1), or invert the training images.")
stage("generator", "Train a small diffusion pipeline on the ID images.")
stage("outliers", "Sample outlier embeddings (phase 2a).", "sample")


@app.command("synthesize", hidden=True, **CONFIGURED, **guide("imagine"))
@app.command(**CONFIGURED, **guide("imagine"))
def imagine(
    context: typer.Context,
    data: Data = None,
    ood: Ood = None,
    hold_out: HoldOut = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how much and how long it will be; draw nothing.")
    ] = False,
) -> None:
    """Draw the images of the outlier embeddings (phase 2b), and judge them."""
    files, overrides = prepared(context, data, ood, hold_out)
    from openood_dream.pipelines import stages
    from openood_dream.reports.render import render_quality

    if dry_run:
        typer.echo(stages.dry_run(files, overrides))
        return
    quality, images = stages.stages(["quality", "images"], files, overrides)  # in this order: a judge may be missing
    made(images)
    made(quality)
    typer.echo(render_quality(quality), nl=False)


@app.command(**guide("verify"))
def verify(
    folder: Annotated[Path, typer.Argument(help="A folder images-* in the cache.", **PATH)],
    quiet: Quiet = False,
) -> None:
    """Compare an image set with its table: sha256 of every image, missing and additional ones."""
    from openood_dream.dream import image_set

    count, problems, delete = image_set.verify(folder)
    for file, problem in problems.items():
        typer.echo(f"{printable(str(file))}: {problem}")
    if problems:
        typer.echo("To repair, delete these and run the same imagine again; it draws the shards named above alone:")
        typer.echo(shlex.join(["rm", *map(str, delete)]))
        ending.fail(f"{folder}: {len(problems)} problems with {count} images")
        raise typer.Exit(ending.FAILURE)
    typer.echo(f"{folder}: {count} images, all as recorded")


plot = typer.Typer(
    help="Draw what was imagined to a PNG, making first what is missing.",
    no_args_is_help=True,
    rich_markup_mode=None,
    **guide("plot"),
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


@plot.command(**CONFIGURED, **guide("plot embeddings"))
def embeddings(
    context: typer.Context,
    class_: Classes = None,
    method: Annotated[Method, typer.Option(help="How the space becomes a plane.")] = Method.pca,
    outliers: Outliers = "",
    out: Out = None,
) -> None:
    """Draw ID embeddings, anchors, boundary points, outliers and inliers in a plane, and their k-NN distances."""
    draw(context, "embeddings", class_, out, outliers=separated(outliers), method=method.value)


@plot.command(**CONFIGURED, **guide("plot grid"))
def grid(context: typer.Context, class_: Classes = None, outliers: Outliers = "", out: Out = None) -> None:
    """Draw the images of each class, or of each way of sampling, from near to far with their k-NN distances."""
    draw(context, "grid", class_, out, outliers=separated(outliers))


@plot.command(**CONFIGURED, **guide("plot line"))
def line(context: typer.Context, class_: Classes = None, out: Out = None) -> None:
    """Draw a class along the line from its anchor to an outlier, in the same noise."""
    draw(context, "line", class_, out)


def draw(context: typer.Context, kind: str, classes: list[str] | None, out: Path | None, **options: Any) -> None:
    """Draws a figure and prints its path."""
    files, overrides = configured(context)
    from openood_dream.pipelines import stages

    finished(stages.plot(kind, files, overrides, classes or [], out, **options))
