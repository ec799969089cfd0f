"""The command itself, and the words and options that its commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from openood_dream._version import __version__
from openood_dream.errors import InputError

app = typer.Typer(
    name="openood-dream",
    help="Imagine out-of-distribution images with diffusion models, and prove what they are worth.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Commands that take OpenOOD's `--config A.yml B.yml --key value`: any --key may follow, so the words are read by us.
CONFIGURED: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "options_metavar": "--config A.yml B.yml ... [--plugin FILE.py ...] [--key value ...]",
}


def configured(context: typer.Context) -> tuple[list[str], list[str]]:
    """The config files and the overrides of a command line; InputError where there are no files."""
    files, overrides = read_words(context)
    if not files:
        raise InputError(f"{context.info_name}: no config; expected --config A.yml B.yml ...")
    return files, overrides


def read_words(context: typer.Context) -> tuple[list[str], list[str]]:
    """The config files, which there may be none of, and the overrides of a command line; its plugins are loaded."""
    files, overrides, reading = list[str](), list[str](), False
    for word in plugged(context.args):
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
    return files, overrides


def plugged(words: list[str]) -> list[str]:
    """Loads the plugins that a command line names by --plugin FILE.py; the other words of it."""
    rest, named, left = list[str](), list[Path](), iter(words)
    for word in left:
        if word != "--plugin" and not word.startswith("--plugin="):
            rest.append(word)
            continue
        file = word.partition("=")[2] or next(left, "")
        if not file or file.startswith("--"):
            raise InputError("--plugin: no file; expected --plugin FILE.py")
        named.append(Path(file))
    load_plugins(named)
    return rest


def load_plugins(named: Sequence[Path]) -> None:
    """Loads plugin files.

    Args:
        named: their paths, as a command line has them.
    """
    if named:
        from openood_dream import plugins

        plugins.load_installed()  # so that a name that one of them has is refused
        plugins.load([str(user_path(file)) for file in named])


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


def finished(path: Path) -> None:
    """Prints where the result lies."""
    typer.echo(str(path))
