"""Images of one's own instead of a config: --data, --ood, --hold-out, and the command init."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openood_dream.cli.guides import guide
from openood_dream.cli.words import CONFIGURED, PATH, app, configured, read_words, user_path
from openood_dream.errors import InputError

if TYPE_CHECKING:
    from openood_dream.pipelines.own import Own

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Your images, instead of a config: a folder of class folders, a list of lines 'path class', or a CSV.",
        metavar="PATH",
        **PATH,
    ),
]
Ood = Annotated[
    Path | None, typer.Option("--ood", help="With --data: other images, to be told from them.", metavar="PATH", **PATH)
]
HoldOut = Annotated[
    float | None,
    typer.Option("--hold-out", help="With --data: share of the classes kept as near-OOD; 0.2 where there is no --ood."),
]


def prepared(
    context: typer.Context, data: Path | None, ood: Path | None, hold_out: float | None
) -> tuple[list[str], list[str]]:
    """The config files and the overrides of a command line, the first of them made from --data where that is given."""
    if data is None:
        if ood is not None or hold_out is not None:
            raise InputError(f"{'--ood' if ood else '--hold-out'}: goes with --data; a config has ood_dataset")
        return configured(context)
    files, overrides = read_words(context)
    made = written(data, ood, hold_out, overrides)
    return [str(made.config), *files], overrides


def written(data: Path, ood: Path | None, hold_out: float | None, overrides: list[str]) -> Own:
    """Writes lists and config of images, or finds them again, and says what was chosen."""
    from openood_dream.pipelines import own

    made = own.prepare(data, ood, hold_out, root_of(overrides))
    for line in made.said:
        typer.echo(line, err=True)
    return made


def root_of(overrides: list[str]) -> Path | None:
    """The root that the overrides name."""
    for word, value in zip(overrides, [*overrides[1:], ""]):
        if word == "--root" and value:
            return user_path(value)
        if word.startswith("--root="):
            return user_path(word.partition("=")[2])
    return None


@app.command(
    **CONFIGURED | {"options_metavar": "--data PATH [--ood PATH] [--root PATH]"},
    **guide("init"),
)
def init(context: typer.Context, data: Data = None, ood: Ood = None, hold_out: HoldOut = None) -> None:
    """Divide your images into splits and print a commented config for them: --data photos/ > my.yml."""
    if data is None:
        raise InputError("init: no images; expected --data PATH")
    if any(word.startswith("--plugin") for word in context.args):
        raise InputError("init: takes no --plugin; give it to the commands that use the config")
    files, overrides = read_words(context)
    rest = [word for word in [*files, *overrides] if not word.startswith("--root")]
    if files or len(rest) > 1 or rest and "--root" not in overrides:
        raise InputError(f"init: takes --data, --ood, --hold-out and --root, got {' '.join(rest)}")
    typer.echo(written(data, ood, hold_out, overrides).config.read_text(encoding="utf-8"), nl=False)
