"""Artifacts: folders named by what determines them, complete only with a manifest, resumable.

A stage's folder is `<cache_dir>/<stage>-<label>-<hash of its inputs>`, such as images-knn-sigma0.15-8e3e51c0. Its
`manifest.json`, which has the whole hash, is written last, by rename, so a folder that has one is complete, and a folder
that has none is an interrupted run that the next one continues.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from filelock import FileLock, Timeout

from openood_dream._version import __version__
from openood_dream.errors import InputError, reason, show, warn
from openood_dream.store import latest
from openood_dream.store.files import (
    Kinds,
    fingerprint,
    read_record,
    remove_unfinished,
    settle,
    sync_folder,
    writable,
    write_json,
)
from openood_dream.store.steps import Step, tell

MANIFEST = "manifest.json"
KEYS: Kinds = {
    "stage": str,
    "label": (str, NoneType),
    "hash": str,
    "inputs": dict,
    "seconds": (int, float),
    "warnings": (list, NoneType),
}
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what file systems say that know no locks
ANEW = "delete the folder and run again"
DIGITS = 8  # of a hash in a folder's name: two of a thousand artifacts of a stage agree in them once in 10,000 caches
LABEL = 40  # characters of a label at most


@dataclass(frozen=True)
class Artifact:
    """The complete folder of a stage.

    Args:
        path: the folder.
        manifest: what it was completed with: stage, hash, inputs, seconds, and what the stage said of it.
        reused: whether it was there before.
    """

    path: Path
    manifest: dict[str, Any]
    reused: bool

    @property
    def hash(self) -> str:
        """The fingerprint of its inputs."""
        return self.manifest["hash"]

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about it, each in one line; see errors.warn."""
        return self.manifest.get("warnings") or []

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return self.manifest["stage"]

    @property
    def label(self) -> str:
        """What its folder's name says of its inputs; "" where it says nothing."""
        return self.manifest.get("label") or ""


def complete(folder: Path, kinds: Kinds | None = None, remedy: str = ANEW) -> dict[str, Any] | None:
    """The manifest of a complete folder, or None for a folder that is missing or was interrupted.

    Args:
        folder: the folder.
        kinds: for each key of the manifest that is read, what its value may be; NoneType allows that it is missing.
        remedy: what to do where it is damaged.

    Raises:
        InputError: the manifest is damaged.
    """
    try:
        return read_record(folder / MANIFEST, kinds, remedy)
    except FileNotFoundError:
        return None


def completed(folder: Path, wanted: str | None = None, remedy: str = ANEW) -> dict[str, Any] | None:
    """The manifest of a complete artifact, or None for one that is missing or was interrupted.

    Args:
        folder: the artifact's.
        wanted: the hash that it must have; None for that of its inputs alone.
        remedy: what to do where it is damaged.

    Raises:
        InputError: the manifest is damaged, or its inputs are not those of its hash.
    """
    manifest = complete(folder, KEYS, remedy)
    if manifest is None:
        return None
    try:
        same = fingerprint(manifest["inputs"]) == manifest["hash"] == (wanted or manifest["hash"])
    except (ValueError, RecursionError):  # NaN, which no inputs have
        same = False
    if not same:
        raise InputError(f"{folder / MANIFEST}: inputs: not those of its hash; {remedy}")
    for text in manifest.get("warnings") or []:
        if not isinstance(text, str):
            raise InputError(f"{folder / MANIFEST}: warnings: expected texts, got {show(text)}; {remedy}")
    return manifest


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


def folder_of(cache_dir: str | Path, stage: str, inputs: Mapping[str, Any], label: str = "") -> Path:
    """Where an artifact lies, complete or not.

    Args:
        cache_dir: the folder of all artifacts.
        stage: what makes it.
        inputs: all that determines it (JSON-serialisable).
        label: what people should know it by, which `inputs` determine too.
    """
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", label)[:LABEL].strip("-.")
    return Path(cache_dir) / "-".join(filter(None, (stage, readable, fingerprint(inputs)[:DIGITS])))


def build(
    cache_dir: str | Path,
    stage: str,
    inputs: Mapping[str, Any],
    make: Callable[[Path], Mapping[str, Any] | None],
    *,
    label: str = "",
    settled: bool = False,
) -> Artifact:
    """An artifact: reused where it is complete, else made. Two processes that want the same one wait for each other.

    Args:
        cache_dir: the folder of all artifacts.
        stage: what makes it.
        inputs: all that determines it (JSON-serialisable).
        make: writes it into the folder that it is given, where it finds what an interrupted run has left, and returns
            what the manifest should say besides; `warnings` among it are warned of whenever the artifact is used.
        label: what people should know it by, as in `folder_of`; `latest/<stage>` leads to the newest that has one.
        settled: whether `make` brings all that it writes to the disk itself, as stages with very many files do; else it
            is done here, file by file.

    Raises:
        InputError: `cache_dir` is not writable.
        OSError: a disk is full or fails, in one line; what was finished stays for the next run.
        Missing: within `reusing_only`, it is not complete.
    """
    folder = folder_of(cache_dir, stage, inputs, label)
    wanted = fingerprint(inputs)
    manifest = completed(folder, wanted)
    if manifest is not None:
        return _done(Artifact(folder, manifest, reused=True))
    if _reusing.get():
        raise Missing(stage)
    with folder_if_used(folder.parent), locked(folder):
        manifest = completed(folder, wanted)  # another process may have finished it while this one waited
        if manifest is not None:
            return _done(Artifact(folder, manifest, reused=True))
        tell(Step(stage))
        start = time.perf_counter()
        with writing_in(folder):
            extra = make(folder) or {}
            remove_unfinished(folder)
            if not settled:
                settle(folder)
            sync_folder(folder.parent)
            manifest = {
                **extra,
                "stage": stage,
                "label": label,
                "hash": wanted,
                "inputs": inputs,
                "seconds": round(time.perf_counter() - start, 3),
                "code": __version__,
            }
            write_json(folder / MANIFEST, manifest)
        if label:
            latest.point(folder, stage)
        # as read back, so that a fresh artifact and a reused one are the same to their readers
        return _done(Artifact(folder, json.loads(json.dumps(manifest)), reused=False))


def _done(artifact: Artifact) -> Artifact:
    """The artifact, after whoever listens was told of it and its warnings were said."""
    if not _reusing.get():  # then somebody only looks what is there
        tell(Step(artifact.stage, artifact.path, None if artifact.reused else artifact.manifest["seconds"]))
    for text in artifact.warnings:
        warn(f"{artifact.path}: {text}")
    return artifact


@contextmanager
def folder_if_used(folder: Path) -> Iterator[None]:
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
    """Keeps other processes from a folder; they wait, and say so.

    Args:
        folder: the folder.
        file: the lock, a hidden file beside the folder if not given.
    """
    path = file or folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another run that makes {folder}", file=sys.stderr)
            lock.acquire()
    except (NotImplementedError, OSError) as error:
        if not isinstance(error, NotImplementedError) and error.errno not in NO_LOCKS:
            raise
        raise InputError(
            f"{path}: this file system has no locks ({reason(error)}), which keep two runs apart; have it mounted with locks "
            "(NFS: without nolock, its lock service running), or choose a folder on another disk"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # whoever waits for the removed file notices and takes a new one
            path.unlink()
        lock.release()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Makes a run's folder, and keeps other processes from it; they wait. Disk errors are those of `writing_in`."""
    # its lock lies inside, since a folder that a user names may have a parent that nobody may write in
    with folder_if_used(folder), locked(folder, folder / ".lock"), writing_in(folder):
        yield


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Makes a folder to write in, as `folder_if_used`; errors of the disk in the block become an OSError of one line.

    Errors of libraries written in Rust (safetensors), which are no OSError, are among them.
    """
    with folder_if_used(folder):
        try:
            yield
        except Exception as error:
            rust = re.search(r"(?:os error |Os \{ code: )(\d+)", str(error))  # the latter from older versions
            code = error.errno if isinstance(error, OSError) else rust and int(rust[1])
            if code is None or isinstance(error, InputError):
                raise
            where = getattr(error, "filename", None) or folder
            raise OSError(
                f"{where}: {os.strerror(code)}; what is finished is kept: mend that and run the same command again to go on"
            ) from error
