"""OpenOOD's image lists: one `path label` a line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from openood_dream.errors import InputError
from openood_dream.store.files import contents, fingerprint, remembered, write_text

IMGLIST_LINE = re.compile(r"\s*(\S|\S.*?\S) +([-+]?[0-9]{1,18})\s*")  # the last word is the label

ImageRows = list[tuple[str, int]]


def read_imglist(path: str | Path, key: str = "imglist_pth") -> ImageRows:
    """The (name, label) pairs of an image list; names may hold spaces.

    Args:
        path: the list.
        key: the config key that names it, for messages.

    Raises:
        InputError: names the list, and the line, for a missing file, an empty list, a line without an integer label,
            or a name that leads out of data_dir.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("it is no regular file")  # a pipe would be waited for
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such image list ({key}); check the path") from None
    except UnicodeDecodeError as error:
        at, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise InputError(f"{path}:{at}: expected UTF-8 text, got byte 0x{byte:02x}; save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read this image list ({error}); expected a file ({key})") from None
    rows, where = [], str(path)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = IMGLIST_LINE.fullmatch(line)
        if not match:
            raise InputError(f"{where}:{number}: expected 'path label' with an integer label, got {line.strip()!r}")
        rows.append((check_inside(match[1], f"{where}:{number}"), int(match[2])))
    if not rows:
        raise InputError(f"{path}: the image list is empty ({key}); expected lines 'path label'")
    return rows


def check_inside(name: str, where: str) -> str:
    """Checks that an image's name does not lead out of data_dir.

    Args:
        name: its path, relative to data_dir.
        where: the beginning of the message.

    Returns:
        The name.

    Raises:
        InputError: it does.
    """
    absolute, climbs = os.path.isabs(name), ".." in name and os.path.normpath(name).split(os.sep)[0] == ".."
    if absolute or climbs or "\0" in name:
        raise InputError(
            f"{where}: image {name!r} leaves the data folder; expected a path below data_dir, relative to it"
        )
    return name


def write_imglist(path: Path, rows: Iterable[tuple[str, int]]) -> None:
    """Writes an image list, whole or not at all.

    Args:
        path: the list.
        rows: (name, label) of each image.
    """
    write_text(path, "".join(f"{name} {label}\n" for name, label in rows))


def opened_rows(imglist: str | Path, key: str) -> ImageRows:
    """As `read_imglist`, but within `looked_once` a list is read once.

    Args:
        imglist: the list.
        key: the config key that names it, for messages.

    Returns:
        (name, label) of each image, which nobody may change.

    Raises:
        InputError: the list cannot be read.
    """
    return remembered(("rows", str(imglist)), lambda: read_imglist(imglist, key))


def rows_identity(rows: Sequence[tuple[str, int]], imglist: str | Path, data_dir: str | Path, key: str) -> str:
    """A fingerprint of images: their names, labels and contents, wherever they lie. Within `looked_once` it is made once.

    Args:
        rows: (name, label) of each image.
        imglist: the list that holds them, for messages.
        data_dir: the folder that their names start from.
        key: the config key that names the list, for messages.

    Raises:
        InputError: names the first image that is not there or cannot be read.
    """
    folder = str(Path(data_dir))

    def find() -> str:
        try:
            return fingerprint([rows, contents([os.path.join(folder, name) for name, _ in rows])])
        except OSError as error:
            what = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise InputError(
                f"{imglist}: image {error.filename!r} {what} ({key}); check data_dir and the list"
            ) from None

    return remembered(("identity", str(imglist), folder), find)


def list_identity(imglist: str | Path, data_dir: str | Path, key: str) -> str:
    """A fingerprint of the images of a list: their names, labels and contents, wherever they lie.

    Args:
        imglist: the list.
        data_dir: the folder that its names start from.
        key: the config key that names the list, for messages.

    Raises:
        InputError: names the list if it cannot be read, or the first image that is not there or cannot be read.
    """
    return rows_identity(opened_rows(imglist, key), imglist, data_dir, key)
