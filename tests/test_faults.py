"""Faults: killed, interrupted, doubled, out of disk, damaged files, wrong clocks. One line says what is wrong, no
finished work is lost, and the same command again ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import forks
import pytest
import torch

from openood_dream.dream import images as images_stage
from openood_dream.errors import InputError
from openood_dream.pipelines.jobs import job as run_job
from openood_dream.pipelines.train import STARTED, train
from openood_dream.store.files import UNFINISHED
from openood_dream.trainers import loop
from openood_dream.trainers.known import BaseTrainer

BASE = "benchmarks/methods/base.yml"
HINT = "openood-dream: error: interrupted; run the same command again to go on where it stopped"
AGAIN = "mend that and run the same command again to go on"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Here as many threads as in the forks: on their number depends how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen]:
    with forks.serving() as server:
        yield server


@pytest.fixture
def fork(server, tmp_path) -> Iterator[Callable[..., forks.Fork]]:
    """Starts a command in a process of its own, with code to execute there first."""
    started: list[forks.Fork] = []

    def start(*words: object, hook: str = "") -> forks.Fork:
        folder = tmp_path / f"process-{len(started)}"
        folder.mkdir()
        started.append(forks.Fork(server, folder, list(map(str, words)), hook))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):  # most have ended
            os.killpg(process.pid, signal.SIGKILL)


# What a run that is killed in its last moment may leave, which nothing reads.
SCRAP = re.compile(r"\.lock$|training\.ckpt$|/classes/|/tensorboard/")  # the last: named by time and process


def tree(root: Path) -> dict[str, str]:
    """The sha256 of every file below a folder; how long things took, and where, does not count."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "report.html" and not SCRAP.search(str(path)):
            content = path.read_bytes().replace(os.fsencode(root), b"ROOT")
            if path.suffix == ".json":
                content = re.sub(rb'"seconds": [-\d.e]+', b"", content)
            found[path.relative_to(root).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def finished(root: Path) -> dict[str, str]:
    """The tree of a benchmark but for its logs: each holds what its last job said, which differs where it went on."""
    return {file: content for file, content in tree(root).items() if not file.startswith("logs/")}


def job(tiny, root: Path, *more: object) -> list[object]:
    """The words that train and score one network of the benchmark."""
    keys = [
        "--method",
        "base",
        "--seed",
        "0",
        "--optimizer.num_epochs",
        "4",
        "--benchmark.postprocessors",
        "[msp, knn]",
    ]
    return ["job", "--config", tiny.file, BASE, "--root", root, *keys, *more]


@pytest.fixture(scope="module")
def scored(tiny, tmp_path_factory) -> Path:
    """What `job` leaves where nothing happens to it: the folder of a trained and scored run."""
    keys = list(map(str, job(tiny, tmp_path_factory.mktemp("scored"))))
    return run_job(keys[2:4], keys[4:])


@pytest.fixture(scope="module")
def whole(scored) -> dict[str, str]:
    """The tree of `job`."""
    return tree(scored.parents[2])


def run_folder(root: Path) -> Path:
    return root / "runs" / "base" / "s0"


# ------------------------------------------------------------------------------------------------------------- kill -9


# Kills the process instead of giving the nth file its name.
KILL = """
import os, signal
replace, count = os.replace, 0

def counted(*args):
    global count
    count += 1
    if count == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)

os.replace = counted
"""


@pytest.mark.slow
def test_killed_job_ends_as_one_that_was_not(fork, tiny, whole, tmp_path):
    root = tmp_path / "out"
    for number in (3, 8, 13):
        assert fork(*job(tiny, root), hook=KILL.format(number=number)).wait().code == -signal.SIGKILL
    assert (run_folder(root) / "train.json").exists() and not (run_folder(root) / "knn" / "ood.csv").exists()
    assert fork(*job(tiny, root)).wait().code == 0
    assert tree(root) == whole


def interrupt() -> None:
    raise KeyboardInterrupt


# The quickstart's stages in their order: the words of a command that makes this stage alone once the ones before are there.
STAGES = {
    "data": ["anchors"],
    "text and anchors": ["anchors"],
    "space": ["space"],
    "generator": ["generator"],
    "outliers": ["outliers"],
    "images and quality": ["imagine"],
    "training and scores": ["job"],
    "leaderboard": ["benchmark", "--methods", "dream_ood", "--seeds", "1"],
}


@pytest.mark.slow
def test_chain_killed_ten_times_a_stage(fork, tiny, tmp_path):
    work, before = tmp_path / "work", tmp_path / "before"
    keys = ["--root", work, "--data_root", work / "data", "--benchmark.postprocessors", "[msp, knn]"]

    def words(stage: str) -> list[object]:
        layers = [tiny.file]
        more = []
        if stage == "training and scores":
            layers += tiny.config().benchmark.methods["dream_ood"]
            more = ["--method", "dream_ood", "--seed", "0"]
        return [STAGES[stage][0], "--config", *layers, *STAGES[stage][1:], *keys, *more]

    for stage in STAGES:
        shutil.rmtree(before, ignore_errors=True)
        work.mkdir(exist_ok=True)
        if stage == "text and anchors":
            shutil.rmtree(work / "dream")
        shutil.copytree(work, before)
        start = time.monotonic()
        assert fork(*words(stage)).wait().code == 0
        seconds, expected = time.monotonic() - start, tree(work)
        kills = tries = 0
        again = True
        while kills < 10:
            if again:
                shutil.rmtree(work)
                shutil.copytree(before, work)
            process = fork(*words(stage))
            time.sleep(seconds * (tries % 10 + 0.5) / 10)
            process.signal(signal.SIGKILL)
            again = process.wait().code == 0  # it was faster than expected
            assert not again or tree(work) == expected
            kills, tries = kills + (not again), tries + 1
            assert tries < 40, f"{stage}: {seconds} seconds"
        assert fork(*words(stage)).wait().code == 0
        assert tree(work) == expected, stage
        print(f"{stage}: {seconds:.1f} s, {kills} kills in {tries} tries")
    table = (work / "leaderboard.csv").read_bytes()
    shutil.rmtree(work)
    assert fork(*words("leaderboard")).wait().code == 0
    assert (work / "leaderboard.csv").read_bytes() == table and tree(work) == expected


@pytest.mark.slow
def test_benchmark_with_jobs_killed_twenty_times(fork, tiny, dream, tmp_path):
    """The benchmark alone, whose jobs end with it, and all of them at once."""
    root, before = tmp_path / "out", tmp_path / "before"
    shutil.copytree(tiny.root / "dream", before / "dream")
    keys = ["--root", root, "--benchmark.postprocessors", "[msp, knn]", "--jobs", "2"]
    words = ["benchmark", "--config", tiny.file, "--methods", "base,dream_ood", "--seeds", "1", *keys]

    shutil.copytree(before, root)
    start = time.monotonic()
    assert fork(*words).wait().code == 0
    seconds, expected = time.monotonic() - start, finished(root)
    kills, again = {"alone": 0, "all": 0}, True
    for number in range(60):
        if again:
            shutil.rmtree(root)
            shutil.copytree(before, root)
        how = ("alone", "all")[number % 2]
        process = fork(*words)
        time.sleep(seconds * (number * 7 % 20 + 0.5) / 20)
        jobs = _workers(process.pid)
        for pid in [process.pid, *(jobs if how == "all" else [])]:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
        again = process.wait().code == 0
        process.until(lambda jobs=jobs: not any(map(_works, jobs)), 30)
        assert not again or finished(root) == expected
        kills[how] += not again
        if min(kills.values()) >= 10:
            break
    assert min(kills.values()) >= 10
    assert fork(*words).wait().code == 0 and finished(root) == expected
    print(f"benchmark: {seconds:.1f} s, kills: {kills}")


def _workers(pid: int) -> list[int]:
    """The processes that do the jobs of a benchmark's."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [child for child in map(int, found.stdout.split()) if _works(child)]


def _works(pid: int) -> bool:
    """Whether a process is there and does jobs."""
    try:
        return b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------- two at one time


# Begins to train when another process waits for that.
HOLD = """
import time
from pathlib import Path
from openood_dream.trainers.known import BaseTrainer

epoch, other = BaseTrainer.train_epoch, Path({other!r})

def held(self, number):
    while not (other.exists() and other.read_text()):
        time.sleep(0.01)
    return epoch(self, number)

BaseTrainer.train_epoch = held
"""


@pytest.mark.slow
@pytest.mark.parametrize("change", [[], ["--optimizer.lr", "0.01"]])
def test_two_jobs_in_one_folder(fork, tiny, whole, tmp_path, change):
    root, waiting = tmp_path / "out", f"waiting for another run that makes {run_folder(tmp_path / 'out')}"
    first = fork(*job(tiny, root), hook=HOLD.format(other=str(tmp_path / "process-1" / "err.txt")))
    first.until((run_folder(root) / STARTED).exists)
    second = fork(*job(tiny, root, *change)).wait()
    ended = first.wait()
    assert (ended.code, ended.out) == (0, f"{run_folder(root)}\n")
    if change:
        assert second.code == 2 and len(second.err) == 1
        assert second.err[0].startswith(
            f"openood-dream: error: command line: optimizer.lr: {run_folder(root)} holds a run with 0.1, not 0.01; "
        )
    else:
        assert second.code == 0 and second.err[0] == waiting
        assert set(ended.err + second.err) == {waiting}  # they may meet once more, when they score
    assert tree(root) == whole


@pytest.mark.slow
def test_two_benchmarks_at_once(fork, tiny, tmp_path):
    root, trees = tmp_path / "out", []
    for count in (1, 2):
        shutil.rmtree(root, ignore_errors=True)  # the same one again: images name the folder of their generator
        words = ["benchmark", "--config", tiny.file, "--methods", "base,dream_ood", "--seeds", "1"]
        keys = ["--root", root, "--data_root", root / "data", "--dataset.train.imglist_pth"]
        processes = [fork(*words, *keys, root / "data/benchmark_imglist/digits/train.txt") for _ in range(count)]
        assert [process.wait().code for process in processes] == [0] * count
        trees.append(finished(root))
    assert trees[0] == trees[1]


# -------------------------------------------------------------------------------------------------------- interruptions

# What begins in the middle of the work: says so, and is slow to end when it is interrupted.
STUCK = """
import sys, time
from pathlib import Path
from {module} import {name} as owner

def stuck(*args):
    try:
        Path({mark!r}).touch()  # inside, since the signal may come at once
        time.sleep(120)
    finally:
        Path({mark!r} + "-again").touch()
        time.sleep({clean_up})

owner.{method} = stuck
"""


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("stage", ["imagine", "train", "benchmark"])
def test_interruptions(fork, tiny, dream, whole, tmp_path, stage, times):
    """Once: cleanly, with all that was finished. Twice: at once, even while it cleans up."""
    root, mark = tmp_path / "out", tmp_path / "mark"
    place = {"module": "openood_dream.trainers.base", "name": "BaseTrainer", "method": "train_epoch"}
    if stage == "imagine":
        place = {"module": "openood_dream.dream.imaginer", "name": "Imaginer", "method": "__call__"}
        shutil.copytree(
            tiny.root / "dream",
            root / "dream",
            symlinks=True,  # those in `latest` lead to what is left out
            ignore=shutil.ignore_patterns("images-*", "quality-*", "teacher-*"),
        )
    words = [stage, "--config", tiny.file, *([BASE] if stage == "train" else []), "--root", root]
    words += ["--methods", "base", "--jobs", "1"] if stage == "benchmark" else []
    process = fork(*words, hook=STUCK.format(**place, mark=str(mark), clean_up=120 * (times - 1)))
    process.until(mark.exists)
    process.signal(signal.SIGINT)
    if times == 2:
        process.until(Path(f"{mark}-again").exists)
        process.signal(signal.SIGINT)
    ended = process.wait()
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == [HINT if times == 1 else "openood-dream: error: interrupted again; stopped at once"]
    left = [path.name for path in root.rglob("*") if path.is_file()]
    assert not {"train.json", "imglist.txt", "ood.csv", "leaderboard.csv"} & set(left)
    if times == 1:
        assert not [name for name in left if name.startswith(UNFINISHED) or name.endswith("lock")]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "twice"])
def test_jobs_end_with_their_benchmark(fork, tiny, tmp_path, how):
    words = ["benchmark", "--config", tiny.file, "--methods", "base", "--jobs", "2", "--root", tmp_path / "out"]
    long = ["--optimizer.num_epochs", "10000"]
    process = fork(*words, *long)
    folders = [tmp_path / "out" / "runs" / "base" / seed for seed in ("s0", "s1")]
    process.until(lambda: all((folder / loop.TRAINING).exists() for folder in folders))
    for _ in range(2 if how == "twice" else 1):
        process.signal(getattr(signal, how, signal.SIGINT))
    ended = process.wait()
    if how == "SIGKILL":
        assert ended.code == -signal.SIGKILL
    else:
        assert ended.code == 130 and (how == "twice" or ended.err == [HINT])
    running = ["pgrep", "-f", str(tmp_path / "out")]
    process.until(lambda: not subprocess.run(running, capture_output=True, text=True, check=False).stdout, 30)
    if how != "twice":
        for seed in (0, 1):
            assert (tmp_path / "out" / "logs" / f"base-s{seed}.log").read_text().splitlines()[-1] == HINT


# ----------------------------------------------------------------------------------------------------------- full disks


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of this size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # this process may have a file mapped


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


# The stages of the imagination in their order, and the commands that make them.
COMMANDS = {
    "text": "anchors",
    "anchors": "anchors",
    "space": "space",
    "generator": "generator",
    "outliers": "outliers",
    "images": "imagine",
    "quality": "imagine",
}


@pytest.fixture
def folders(dream) -> dict[str, Path]:
    """Where the shared chain keeps each stage."""
    found = {stage: Path(getattr(dream, stage).path) for stage in COMMANDS if stage != "text"}
    return found | {"text": Path(dream.text_source.path)}


@pytest.fixture
def until(folders, tmp_path) -> Callable[[str], Path]:
    """A cache of its own with the stages before a given one."""

    def copied(stage: str) -> Path:
        for other in itertools.takewhile(lambda other: other != stage, COMMANDS):
            shutil.copytree(folders[other], tmp_path / "dream" / folders[other].name)
        (tmp_path / "dream").mkdir(exist_ok=True)
        return tmp_path / "dream"

    return copied


def fails_and_goes_on(command, words: list, disk: Path, folder: Path, finished: str) -> None:
    """A command on a full disk ends in one line that names the folder; with room it does its work."""
    done = command(*words)
    assert (done.code, done.out, len(done.err)) == (1, "", 1), done
    assert done.err[0].startswith(f"openood-dream: error: {folder}") and done.err[0].endswith(AGAIN), done.err
    assert "No space left on device" in done.err[0]
    assert not list(disk.rglob(finished))
    remount(disk, "size=50m")
    assert command(*words).code == 0 and list(disk.rglob(finished))
    assert not list(disk.rglob(f"{UNFINISHED}*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, size",
    [
        *((stage, "4k") for stage in COMMANDS),
        *(pytest.param(stage, size, marks=pytest.mark.slow) for stage in COMMANDS for size in ("8k", "32k")),
    ],
)
def test_full_disk_in_a_stage(command, tiny, folders, until, tmp_path, stage, size):
    files = [path for path in folders[stage].rglob("*") if path.is_file()]
    if sum(-(-path.stat().st_size // 4096) for path in files) <= int(size[:-1]) / 4:
        pytest.skip("all of it fits")
    place = until(stage) / folders[stage].name
    with small_disk(tmp_path / "disk", size) as disk:
        place.symlink_to(disk)
        words = [COMMANDS[stage], "--config", tiny.file, "--dream.cache_dir", place.parent]
        fails_and_goes_on(command, words, disk, place, "manifest.json")


@pytest.mark.parametrize("size", ["4k", "48k"])
def test_full_disk_in_training(command, tiny, whole, tmp_path, size):
    with small_disk(tmp_path / "disk", size) as disk:
        words = job(tiny, disk / "out")
        words[0:4] = ["train", "--config", tiny.file, BASE]
        fails_and_goes_on(command, words, disk, run_folder(disk / "out"), "train.json")
        assert command(*job(tiny, disk / "out")).code == 0 and tree(disk / "out") == whole


@pytest.mark.parametrize("free", ["8k", "100k"])
def test_full_disk_in_evaluation(command, tiny, scored, tmp_path, free):
    layers = [tiny.file, "pipelines/test/test_ood.yml", "postprocessors/msp.yml"]
    with small_disk(tmp_path / "disk", free) as disk:
        (disk / "run").mkdir()
        (disk / "run" / "best.ckpt").symlink_to(scored / "best.ckpt")
        words = ["evaluate", "--config", *layers, "--output_dir", disk / "scores"]
        words += ["--network.checkpoint", disk / "run" / "best.ckpt"]
        fails_and_goes_on(command, words, disk, disk, "ood.csv")


def test_full_disk_of_a_table(command, tiny, scored, tmp_path):
    with small_disk(tmp_path / "disk", "4k") as disk:
        (disk / "filler").write_bytes(bytes(4096))
        for fmt in ("csv", "html"):
            done = command("leaderboard", scored, "--format", fmt, "--out", disk / f"board.{fmt}")
            assert done.code == 1 and len(done.err) == 1 and str(disk) in done.err[0] and AGAIN in done.err[0]
        assert os.listdir(disk) == ["filler"]
        remount(disk, "size=1m")
        assert command("leaderboard", scored, "--format", "csv", "--out", disk / "board.csv").code == 0


# --------------------------------------------------------------------------------------------------------- damaged files


def halve(path: Path) -> Path:
    os.truncate(path, path.stat().st_size // 2)
    return path


def named(command, words: list, path: Path, remedy: str) -> None:
    """A command ends in one line that names the damaged file and says what to do."""
    done = command(*words)
    assert (done.code, done.out, len(done.err)) == (2, "", 1), done
    assert str(path) in done.err[0] and remedy in done.err[0], done.err[0]


@pytest.mark.parametrize(
    "stage, file, user",
    [
        ("text", "text_encoder/model.safetensors", "anchors"),
        ("anchors", "anchors.safetensors", "space"),
        ("space", "encoder.safetensors", "generator"),
        ("space", "embeddings.safetensors", "outliers"),
        ("generator", "unet/diffusion_pytorch_model.safetensors", "images"),
        ("generator", "vae/diffusion_pytorch_model.safetensors", "images"),
        ("outliers", "classes/000001.safetensors", "images"),
        ("outliers", "embeddings.safetensors.index.json", "images"),
        ("outliers", "outliers.parquet", "images"),
    ],
)
def test_truncated_file_of_a_stage(command, tiny, folders, until, stage, file, user):
    cache = until(user)
    path = halve(cache / folders[stage].name / file)
    words = [COMMANDS[user], "--config", tiny.file, "--dream.cache_dir", cache]
    named(command, words, path, "delete")
    shutil.rmtree(cache / folders[stage].name)
    assert command(*words).code == 0


@pytest.mark.parametrize("file", ["images.parquet", "zero/0000000.png"])
def test_truncated_file_of_an_image_set(command, tiny, folders, until, file):
    cache = until("quality")
    images = cache / folders["images"].name
    path = halve(images / file)
    words = ["imagine", "--config", tiny.file, "--dream.cache_dir", cache]
    named(command, words, path, f"openood-dream verify {images} says how to repair it")
    done = command("verify", images)
    assert done.code in (1, 2) and file in done.out + done.err[0]


@pytest.mark.parametrize(
    "file, words, remedy",
    [
        ("best.ckpt", "evaluate", "train again"),
        ("passes/*/pass.safetensors", "evaluate", "delete its folder"),
        ("passes/*/manifest.json", "evaluate", "delete the folder"),
        ("train.json", "job", "delete its folder"),
        ("knn/evaluate.json", "job", "delete its folder"),
        ("knn/scores/digits.npz", "leaderboard", "score the run again"),
        ("knn/ood.csv", "leaderboard", "run it again"),
        ("knn/evaluate.json", "leaderboard", "delete its folder"),
    ],
)
def test_truncated_file_of_a_run(command, tiny, scored, tmp_path, file, words, remedy):
    root = tmp_path / "out"
    shutil.copytree(scored, run_folder(root))
    path = halve(next(iter(sorted(run_folder(root).glob(file)))))
    if words == "evaluate":
        layers = [tiny.file, "pipelines/test/test_ood.yml", "postprocessors/knn.yml"]
        words = ["evaluate", "--config", *layers, "--output_dir", tmp_path / "new"]
        words += ["--network.checkpoint", run_folder(root) / "best.ckpt"]
    else:
        words = job(tiny, root) if words == "job" else ["leaderboard", root, "--format", "json"]
    named(command, words, path, remedy)


def test_truncated_training_state(command, tiny, scored, tmp_path):
    run_folder(tmp_path).mkdir(parents=True)
    path = run_folder(tmp_path) / loop.TRAINING
    shutil.copy(scored / "best.ckpt", path)
    halve(path)
    named(command, job(tiny, tmp_path), path, "delete it to start anew")
    path.unlink()
    assert command(*job(tiny, tmp_path)).code == 0


def test_truncated_latents(folders, until, tiny, monkeypatch):
    cache = until("images")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images_stage, "write_index", lambda *args: interrupt())
        tiny.config("--dream.cache_dir", str(cache)).imagination.latents(24)
    path = halve(next(cache.glob("latents-*/shards/000001.safetensors")))
    with pytest.raises(
        InputError, match=rf"{re.escape(str(path))}: not a readable safetensors file .* delete its folder"
    ):
        tiny.config("--dream.cache_dir", str(cache)).imagination.latents(24)


# ------------------------------------------------------------------------------------------------- the same checkpoint?


def test_checkpoint_is_known_by_its_content(tiny, scored, tmp_path):
    weights = [tmp_path / name for name in ("start.ckpt", "copy.ckpt")]
    for path in weights:
        shutil.copy(scored / "best.ckpt", path)

    def begun_with(path: Path) -> Path:
        start = ["--network.pretrained", "true", "--network.checkpoint", str(path)]
        return train(tiny.method("base", "--root", str(tmp_path / "out"), *start))

    before = tree(begun_with(weights[0]))
    assert tree(begun_with(weights[1])) == before
    state = torch.load(weights[0], weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, weights[0])
    with pytest.raises(InputError, match=r"network\.checkpoint: .* holds a run with"):
        begun_with(weights[0])
    weights[0].unlink()
    with pytest.raises(InputError, match=r"network\.checkpoint: cannot read '.*start\.ckpt' \(No such file"):
        begun_with(weights[0])


# ------------------------------------------------------------------------------------------------- read-only, and clocks


def test_finished_run_on_a_read_only_disk(command, tiny, scored, tmp_path):
    with small_disk(tmp_path / "disk", "50m") as disk:
        shutil.copytree(scored, run_folder(disk / "out"))
        remount(disk, "ro")
        done = command(*job(tiny, disk / "out"))
        assert (done.code, done.out) == (0, f"{run_folder(disk / 'out')}\n")
        assert command("leaderboard", disk, "--format", "json").code == 0
        for words in (job(tiny, disk / "out", "--seed", "1"), job(tiny, disk / "out", "--output_dir", disk / "new")):
            done = command(*words)
            assert done.code == 2 and len(done.err) == 1
            assert str(disk) in done.err[0] and "cannot write here (Read-only file system)" in done.err[0]


@pytest.mark.parametrize("moment", [1, 2**32])
def test_file_times_do_not_matter(command, tiny, scored, tmp_path, monkeypatch, moment):
    shutil.copytree(scored, run_folder(tmp_path))
    before = tree(tmp_path)
    for path in tmp_path.rglob("*"):
        os.utime(path, (moment, moment))
    monkeypatch.setattr(BaseTrainer, "train_epoch", lambda *args: pytest.fail("trained again"))
    assert command(*job(tiny, tmp_path)).code == 0 and tree(tmp_path) == before


def test_clock_that_runs_backwards(fork, tiny, whole, tmp_path):
    hook = """
import itertools, os, time
os.environ.pop("TQDM_DISABLE")
ticks = itertools.count()
time.time = lambda: 2e9 - 1000 * next(ticks)
time.time_ns = lambda: int(1e9 * time.time())
import tqdm.std
tqdm.std.time = time.time
"""
    process = fork(*job(tiny, tmp_path), hook=hook)
    process.until((run_folder(tmp_path) / loop.TRAINING).exists)
    process.signal(signal.SIGKILL)
    process.wait()
    assert fork(*job(tiny, tmp_path), hook=hook).wait().code == 0
    assert {name: digest for name, digest in tree(tmp_path).items() if not name.startswith("process-")} == whole
