"""Artifacts and image sets on disk: named by what determines them, complete only with a manifest, resumable.

A stage's folder is `<cache_dir>/<stage>-<hash of its inputs>`. Its `manifest.json` is written last, by rename, so a
folder that has one is complete, and a folder that has none is an interrupted run that the next one continues.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from openood_dream import __version__
from openood_dream.config import InputError

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
UNFINISHED = ".part-"  # how the names of temporary files begin


@dataclass(frozen=True)
class Artifact:
    """A complete stage folder: `path`, the `manifest` it was completed with, and whether this run `reused` it."""

    path: Path
    manifest: dict[str, Any]
    reused: bool

    @property
    def hash(self) -> str:
        return self.manifest["hash"]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]


def fingerprint(inputs: Any) -> str:
    """The 16 hexadecimal digits that name whatever was made from `inputs` (JSON-serialisable)."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hashes(paths: Sequence[str | Path], desc: str) -> list[str | OSError]:
    """The SHA-256 of each file, or the error of one that cannot be read; in threads, with a bar after a second."""

    def some(part: Sequence[str | Path]) -> list[str | OSError]:
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
        for found in pool.map(some, parts):
            result += found
            bar.update(len(found))
    return result


def contents(paths: Sequence[str | Path]) -> str:
    """A fingerprint of the contents of files, in order. Raises the OSError of one that cannot be read.

    Files are read once, which takes seconds a gigabyte. The result is remembered in the user's cache folder
    (`$XDG_CACHE_HOME` or ~/.cache) until the size, a time or the inode of a file changes.
    """
    start = time.time_ns()
    stats = [os.stat(path) for path in paths]
    state = [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in zip(paths, stats)]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    memory = Path(cache, "openood-dream", "contents", fingerprint(state))
    with suppress(OSError):
        return memory.read_text()
    found = hashes(paths, "reading files once")
    for digest in found:
        if isinstance(digest, OSError):
            raise digest
    result = fingerprint(found)
    # clocks of files tick slowly: what changed just now may change again without another time
    if max((s.st_ctime_ns for s in stats), default=0) < start - 2_000_000_000:
        with suppress(OSError):
            write_text(memory, result)
    return result


@contextmanager
def replacing(path: Path):
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
    finally:
        work.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of writers that were killed."""
    for path in folder.glob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 by rename."""
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON by rename."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_tensors(path: Path, **tensors) -> None:
    """Writes named tensors as safetensors by rename."""
    from safetensors.torch import save_file

    with replacing(path) as work:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, work)


@contextmanager
def reading_tensors(path: Path, remedy: str = "delete its folder and run again") -> Iterator[None]:
    """A damaged safetensors file that the block reads is an InputError that names it and the remedy."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); {remedy}") from None


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads the named tensors of a safetensors file; a damaged file is an InputError that names it."""
    from safetensors.torch import load_file

    with reading_tensors(path):
        return load_file(path)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes what torch.load reads with weights_only, by rename."""
    import torch

    content = io.BytesIO()  # torch's own files end in errors that do not say why where a disk is full
    torch.save(state, content)
    with replacing(path) as work:
        work.write_bytes(content.getbuffer())


def join_tensors(path: Path, name: str, parts: Sequence[Path]) -> None:
    """Joins the float32 tensor `name` of several safetensors files, row after row, into one file, by rename.

    One part is in memory at a time: a million embeddings take 3 GB.
    """
    from safetensors import safe_open

    shapes = []
    for part in parts:
        with reading_tensors(part), safe_open(part, "pt") as file:
            shapes.append(file.get_slice(name).get_shape())
    shape = [sum(rows for rows, *_ in shapes), *shapes[0][1:]]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}
    header = json.dumps({name: entry}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path) as work, open(work, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in parts:
            file.write(read_tensors(part)[name].numpy().data)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table as parquet by rename."""
    with replacing(path) as work:
        frame.to_parquet(work, index=False)


def writable(folder: Path) -> Path:
    """Makes `folder` if it is not there, and raises InputError in one line if nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({error.strerror}); choose another folder") from None
    return folder


def complete(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete folder, or None for a folder that is missing or was interrupted."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError(f"expected a mapping, got a {type(manifest).__name__}")
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / MANIFEST}: not a readable manifest ({error}); delete the folder and run again"
        ) from None


class Missing(Exception):
    """An artifact that would have to be made; the message is its stage."""


_reusing: ContextVar[bool] = ContextVar("reusing", default=False)


@contextmanager
def reusing_only() -> Iterator[None]:
    """Within the block, `build` raises Missing where it would have to make an artifact; nothing is written."""
    token = _reusing.set(True)
    try:
        yield
    finally:
        _reusing.reset(token)


def folder_of(cache_dir: str | Path, stage: str, inputs: dict[str, Any]) -> Path:
    """Where the artifact of `stage` for `inputs` lies, complete or not."""
    return Path(cache_dir) / f"{stage}-{fingerprint(inputs)}"


def build(
    cache_dir: str | Path, stage: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any] | None]
) -> Artifact:
    """The artifact of `stage` for `inputs`: reused where complete, else made by `make(folder)` and completed.

    `make` finds what an interrupted run left in the folder, and returns what the manifest should say besides.
    Two processes that want the same artifact wait for each other. Raises InputError where `cache_dir` is not writable,
    and an OSError of one line where a disk fills up or fails; what was finished stays for the next run.
    """
    folder = folder_of(cache_dir, stage, inputs)
    manifest = complete(folder)
    if manifest is not None:
        return Artifact(folder, manifest, reused=True)
    if _reusing.get():
        raise Missing(stage)
    with made_if_used(folder.parent), locked(folder):
        manifest = complete(folder)  # another process may have finished it while this one waited
        if manifest is not None:
            return Artifact(folder, manifest, reused=True)
        start = time.perf_counter()
        with made(folder):
            extra = make(folder) or {}
            remove_unfinished(folder)
            manifest = {
                **extra,
                "stage": stage,
                "hash": fingerprint(inputs),
                "inputs": inputs,
                "seconds": round(time.perf_counter() - start, 3),
                "code": __version__,
            }
            write_json(folder / MANIFEST, manifest)
        # as read back, so that a fresh artifact and a reused one are the same to their readers
        return Artifact(folder, json.loads(json.dumps(manifest)), reused=False)


@contextmanager
def made_if_used(folder: Path) -> Iterator[None]:
    """Makes a folder, and removes it and those above that were made with it where the block leaves it empty."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    writable(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty
            for place in new:
                place.rmdir()


@contextmanager
def locked(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Holds the lock of an artifact's folder, a `file` beside it if not given; says so where another process has it."""
    path = file or folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another run that makes {folder}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # whoever waits for the removed file notices and takes a new one
            path.unlink()
        lock.release()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Makes a run's folder, and keeps other processes from it; they wait. Disk errors are those of `made`."""
    # its lock lies inside, since a folder that a user names may have a parent that nobody may write in
    with made_if_used(folder), locked(folder, folder / ".lock"), made(folder):
        yield


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes a folder where things are written, as `made_if_used`. Disk errors become an OSError of one line, those of
    libraries written in Rust (safetensors) too.
    """
    with made_if_used(folder):
        try:
            yield
        except Exception as error:
            rust = re.search(r"\(os error (\d+)\)", str(error))
            code = error.errno if isinstance(error, OSError) else rust and int(rust[1])
            if code is None or isinstance(error, InputError):
                raise
            where = getattr(error, "filename", None) or folder
            raise OSError(
                f"{where}: {os.strerror(code)}; what is finished is kept: mend that and run the same command again to go on"
            ) from error


# ---------------------------------------------------------------------------------------------------- imglists

IMGLIST_LINE = re.compile(r"\s*(\S|\S.*?\S) +([-+]?[0-9]{1,18})\s*")  # the last word is the label


def read_imglist(path: str | Path, key: str = "imglist_pth") -> list[tuple[str, int]]:
    """The (name, label) pairs of an OpenOOD imglist: one `path label` a line; names may hold spaces.

    Raises InputError, naming the line, for a missing file, an empty list, a line without an integer label, or a name
    that leads out of data_dir.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such image list ({key}); check the path") from None
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise InputError(f"{path}:{line}: expected UTF-8 text, got byte 0x{byte:02x}; save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read this image list ({error}); expected a file ({key})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = IMGLIST_LINE.fullmatch(line)
        if not match:
            raise InputError(f"{path}:{number}: expected 'path label' with an integer label, got {line.strip()!r}")
        rows.append((inside(match[1], f"{path}:{number}"), int(match[2])))
    if not rows:
        raise InputError(f"{path}: the image list is empty ({key}); expected lines 'path label'")
    return rows


def inside(name: str, where: str) -> str:
    """An image's name, which must not lead out of data_dir; InputError says `where` one does."""
    if os.path.isabs(name) or Path(os.path.normpath(name)).parts[:1] == ("..",) or "\0" in name:
        raise InputError(
            f"{where}: image {name!r} leaves the data folder; expected a path below data_dir, relative to it"
        )
    return name


def write_imglist(path: Path, rows: Iterable[tuple[str, int]]) -> None:
    """Writes (name, label) pairs as an OpenOOD imglist, by rename."""
    write_text(path, "".join(f"{name} {label}\n" for name, label in rows))


def list_digest(imglist: str | Path, data_dir: str | Path, key: str) -> str:
    """A fingerprint of a data list: its names, labels and the contents of its files, wherever they lie.

    Raises InputError that names the first image which is not there or cannot be read.
    """
    rows, folder = read_imglist(imglist, key), str(data_dir)
    try:
        return fingerprint([rows, contents([os.path.join(folder, name) for name, _ in rows])])
    except OSError as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{imglist}: image {error.filename!r} {what}; check data_dir and the list") from None


# --------------------------------------------------------------------------------------------------- image sets


def shards(total: int, size: int) -> list[range]:
    """The image numbers of each shard of a set of `total` images."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def missing_shards(folder: Path, wanted: Sequence[range]) -> list[int]:
    """The numbers of the shards that have no table yet."""
    return [number for number in range(len(wanted)) if not shard_table(folder, number).exists()]


def shard_table(folder: Path, number: int) -> Path:
    """Where a shard's table lies. It is written after the shard's images, so that no partial image is ever listed."""
    return folder / "shards" / f"{number:06d}.parquet"


def write_image(path: Path, content: bytes) -> None:
    """Writes the bytes of an image of a shard. They are on the disk before it returns, hence before any table lists it."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_table(path: Path, remedy: str = "delete its folder and run again") -> pd.DataFrame:
    """Reads a parquet table; a missing or damaged file is an InputError that names it and the remedy."""
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable table ({reason}); {remedy}") from None


def read_images(folder: Path) -> pd.DataFrame:
    """The table of a finished image set."""
    return read_table(folder / "images.parquet", f"openood-dream verify {folder} says how to repair it")


def read_record(path: Path) -> dict[str, Any]:
    """Reads the JSON that a finished part of a run leaves; a damaged file is an InputError that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not readable JSON ({error}); delete it and run the same command again") from None


def join_shards(folder: Path, count: int) -> pd.DataFrame:
    """Joins the shards' tables to `images.parquet` and `imglist.txt` (file, label), and returns the table."""
    import pandas as pd

    remove_unfinished(folder / "shards")
    numbers = tqdm(range(count), desc="imagine: joining tables", unit="shard", delay=1)
    tables = [read_table(shard_table(folder, number), "delete it and run again") for number in numbers]
    table = pd.concat(tables, ignore_index=True)
    write_table(folder / "images.parquet", table)
    write_imglist(folder / "imglist.txt", zip(table["file"], table["label"], strict=True))
    return table


def verify(folder: Path) -> tuple[int, dict[str, str], list[Path]]:
    """Compares a finished image set with its `images.parquet`: its images' sha256, what is missing, what is not listed.

    Returns how many images are listed, what is wrong: file -> problem, and the files to delete so that the next run
    draws the shards of these images again, and nothing else. Raises InputError for a folder that is no image set.
    """
    manifest = complete(folder)
    if manifest is None or manifest.get("stage") != "images":
        raise InputError(f"{folder}: no finished image set; expected a folder images-* that synthesize has finished")
    remedy = f"delete {folder / MANIFEST} and run the same synthesize again, which joins the shards' tables anew"
    table = read_table(folder / "images.parquet", remedy)
    size = manifest["inputs"]["synthesis"]["shard_size"]
    problems, delete = {}, set()
    found = hashes([folder / file for file in table["file"]], "verify: reading images")
    for file, expected, digest in zip(table["file"], table["sha256"], found, strict=True):
        if digest == expected:
            continue
        shard = int(Path(file).stem) // size
        what = (digest.strerror or "unreadable").lower() if isinstance(digest, OSError) else "altered"
        problems[file] = f"{what} (shard {shard})"
        delete.add(shard_table(folder, shard))
    listed = set(table["file"])
    for place, _, names in os.walk(folder):
        part = Path(place).relative_to(folder)
        if part.parts and part.parts[0] != "shards":
            for file in sorted(f"{part.as_posix()}/{name}" for name in names):
                if file not in listed:
                    problems[file] = "not in images.parquet"
                    delete.add(folder / file)
    rows = None
    with suppress(InputError):
        rows = read_imglist(folder / "imglist.txt")
    if rows != list(zip(table["file"], table["label"])):
        problems["imglist.txt"] = "not the files and labels of images.parquet"
    return len(table), problems, [folder / MANIFEST, *sorted(delete)]
