"""`latest`: a folder beside artifacts, in which each stage's name leads to the newest that it made."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from openood_dream.store.files import UNFINISHED, write_text

LATEST = "latest"


def point(folder: Path, stage: str) -> None:
    """Makes `latest/<stage>` beside a folder lead to it: a link, or where there are none a text file with its path.

    Each is put there by one rename, so that several processes may do it at once: the last one counts. Nobody depends on
    it, so a disk or a file system that refuses it is no reason to fail.

    Args:
        folder: the finished artifact.
        stage: what made it.
    """
    place = folder.parent / LATEST
    with suppress(OSError):
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=UNFINISHED) as work:
            link = Path(work) / stage
            try:
                link.symlink_to(Path("..", folder.name), target_is_directory=True)
                os.replace(link, place / stage)  # which leaves a real folder of that name alone
            except (NotImplementedError, OSError):
                write_text(place / f"{stage}.txt", f"{folder.resolve()}\n")
