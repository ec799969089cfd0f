"""Files that are written whole or not at all: text and JSON; and fingerprints of what they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

from tqdm import tqdm

from openood_dream.errors import InputError, show

T = TypeVar("T")
Kinds = Mapping[str, type | tuple[type, ...]]  # what the values of some keys may be

UNFINISHED = ".part-"  # how the names of temporary files begin
AGAIN = "delete its folder and run again"
JSON_BYTES = 32 << 20  # a record of ours has less; one of this size needs a gigabyte in memory


# ---------------------------------------------------------------------------------------------------- fingerprints


def fingerprint(inputs: Any) -> str:
    """The 16 hexadecimal digits that name whatever was made from `inputs` (JSON-serialisable)."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; OSError where it is no regular file, such as a pipe, which would wait."""
    digest = hashlib.sha256()
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hashes(paths: Sequence[str | Path], desc: str) -> list[str | OSError]:
    """The SHA-256 of many files, read in threads.

    Args:
        paths: the files.
        desc: what the progress bar says, which appears after a second.

    Returns:
        For each file its hash, or the error of one that cannot be read.
    """

    def hash_some(part: Sequence[str | Path]) -> list[str | OSError]:
        found: list[str | OSError] = []
        for path in part:
            try:
                found.append(sha256(path))
            except OSError as error:
                found.append(error)
        return found

    size = min(64, 1 + len(paths) // 64)
    parts = [paths[start : start + size] for start in range(0, len(paths), size)]
    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), desc=desc, unit="file", delay=1) as bar:
        result = []
        for found in pool.map(hash_some, parts):
            result += found
            bar.update(len(found))
    return result


_looked: ContextVar[dict[Hashable, Any] | None] = ContextVar("looked", default=None)


@contextmanager
def looked_once() -> Iterator[None]:
    """Within the block, files that `contents` has looked at are taken to stay as they are, and not looked at again."""
    if _looked.get() is not None:
        yield
        return
    token = _looked.set({})
    try:
        yield
    finally:
        _looked.reset(token)


def remembered(key: Hashable, find: Callable[[], T]) -> T:
    """What `find` returns; within `looked_once` it is called once for each key.

    Args:
        key: what the result is about.
        find: finds it. What it raises is raised, and not remembered.

    Returns:
        The result, which nobody may change.
    """
    memory = _looked.get()
    if memory is None:
        return find()
    if key not in memory:
        memory[key] = find()
    return cast(T, memory[key])


def cache_folder() -> Path:
    """The folder of what is kept for this user between commands: below `$XDG_CACHE_HOME`, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "openood-dream")


def contents(paths: Sequence[str | Path]) -> str:
    """A fingerprint of the contents of files, in order.

    Files are read once, which takes seconds a gigabyte. The result is kept in the user's cache folder
    (`$XDG_CACHE_HOME` or ~/.cache) until the size, a time or the inode of a file changes.

    Raises:
        OSError: a file cannot be read.
    """
    names = tuple(os.fspath(path) for path in paths)
    return remembered(("contents", names), lambda: _contents(names))


def _contents(paths: Sequence[str]) -> str:
    start = time.time_ns()
    states = [(path, *_state(path)) for path in paths]
    kept = cache_folder() / "contents" / fingerprint(states)
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    found = hashes(paths, "reading files once")
    for digest in found:
        if isinstance(digest, OSError):
            raise digest
    result = fingerprint(found)
    changed = max((state[3] for state in states), default=0)
    # clocks of files tick slowly: what changed just now may change again without another time
    if changed < start - 2_000_000_000:
        with suppress(OSError):
            write_text(kept, result)
    return result


def _state(path: str) -> tuple[int, int, int, int]:
    """Size, times of contents and inode, and number of a file: what changes when its contents do."""
    memory = _looked.get()
    if memory is not None and ("state", path) in memory:
        return memory["state", path]
    found = os.stat(path)
    state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    if memory is not None:
        memory["state", path] = state
    return state


# ----------------------------------------------------------------------------------------------------------- writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name `path` when the block ends without an error.

    It is on the disk by then, so that not even a power failure leaves half a file of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{UNFINISHED}{path.name}.", suffix=path.suffix)
    os.close(handle)
    work = Path(name)
    try:
        yield work
        os.chmod(work, 0o666 & ~_umask())  # mkstemp makes files private; artifacts are shared like any other file
        with open(work, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(work, path)
        sync_folder(path.parent)
    finally:
        work.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Brings the names in a folder to the disk; contents of files are brought there file by file."""
    if os.name == "nt":  # where folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that do it by themselves
            raise
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Makes what any library wrote below a folder as good as what `replacing` writes: on the disk, with the rights that
    the umask gives, where some libraries make files that nobody else may read. Links are not followed."""
    rights = 0o666 & ~_umask()
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode):
                continue
            if stat.S_IMODE(found.st_mode) == 0o600 != rights and found.st_uid == os.geteuid():
                os.chmod(path, rights)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(place)


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of writers that were killed."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def writable(folder: Path) -> Path:
    """Makes a folder if it is not there.

    Returns:
        The folder.

    Raises:
        InputError: nothing can be written in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); choose another folder") from None
    return folder


# ----------------------------------------------------------------------------------------------------- text and JSON


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, whole or not at all.

    Args:
        path: the file.
        text: what it shall hold.
    """
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys, whole or not at all.

    Args:
        path: the file.
        value: what it shall hold (JSON-serialisable).
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def check_file(path: str | Path, remedy: str = AGAIN, most: int | None = None) -> int:
    """Checks a file before it is read: a pipe would be waited for, and a file of any size would fill the memory.

    Args:
        path: the file.
        remedy: what to do where it is not fit to be read.
        most: bytes that it may have; None for as many as it likes.

    Returns:
        Its size in bytes.

    Raises:
        InputError: it is no regular file, larger, or cannot be looked at.
        FileNotFoundError: it is not there.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(2, os.strerror(2), os.fspath(path)) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); {remedy}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: expected a regular file; {remedy}")
    if not os.access(path, os.R_OK):  # some libraries say of such a file that it is not there
        raise InputError(f"{path}: cannot be read ({os.strerror(errno.EACCES)}); make it readable, or {remedy}")
    if most is not None and found.st_size > most:
        raise InputError(f"{path}: expected at most {most >> 20} MB, got {found.st_size >> 20} MB; {remedy}")
    return found.st_size


def read_text(path: str | Path, remedy: str = AGAIN, most: int = JSON_BYTES) -> str:
    """A file's text, UTF-8.

    Args:
        path: the file.
        remedy: what to do where it is damaged.
        most: bytes that it may have.

    Raises:
        InputError: it is no regular file, larger, no UTF-8, or cannot be read.
        FileNotFoundError: it is not there.
    """
    check_file(path, remedy, most)
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{path}: expected UTF-8 text, got byte 0x{byte:02x}; {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None


def read_record(path: Path, kinds: Kinds | None = None, remedy: str = AGAIN) -> dict[str, Any]:
    """The JSON mapping that a finished part of a run left.

    Args:
        path: the file.
        kinds: for each key of the mapping that is read, what its value may be; NoneType allows that it is missing.
        remedy: what to do about a damaged file.

    Raises:
        InputError: the file is damaged; the message names it and the first key that is wrong.
        FileNotFoundError: it is not there.
    """
    try:
        record = json.loads(read_text(path, remedy))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error}); {remedy}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected a mapping, got {show(record)}; {remedy}")
    for key, kind in (kinds or {}).items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{path}: {key}: not what this program writes, {show(record.get(key))}; {remedy}")
    return record
