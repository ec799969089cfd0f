"""The openood-dream command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from typing import Any

import typer

from openood_dream import ending

# The order of these is the order of the help.
from openood_dream.cli import jobs, judging  # noqa: F401  # isort: skip
from openood_dream.cli import imagination, own, reading  # noqa: F401
from openood_dream.cli.words import app
from openood_dream.errors import InputError

UsageError: type[Any] = typer.BadParameter.__base__  # type: ignore[assignment]  # what a wrong word raises


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
