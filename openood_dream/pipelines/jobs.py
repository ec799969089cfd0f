"""The jobs of a benchmark: one method with one seed each, run in turn, several at a time, or on a Ray cluster."""

from __future__ import annotations

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from openood_dream import cores
from openood_dream.device import pick_device
from openood_dream.ending import BAD_INPUT, FAILURE, PARENT
from openood_dream.errors import InputError
from openood_dream.experiment import Experiment, load_config
from openood_dream.pipelines.identity import imagines
from openood_dream.pipelines.progress import Progress, job_stages, say
from openood_dream.pipelines.test import check_scoring, score_run
from openood_dream.pipelines.train import check_training, outlier_label, train
from openood_dream.store import artifacts, files


class Job(NamedTuple):
    """A method with a seed: the words of `openood-dream job` that train and score it, and where its log goes."""

    method: str
    seed: int
    words: list[str]
    log: Path
    experiment: Experiment
    scored: list[Experiment]

    @property
    def mark(self) -> Path:
        """The file beside the log that says that the job failed."""
        return self.log.with_suffix(".failed")

    @property
    def start(self) -> Path | None:
        """The weights that its training begins with, None for random ones."""
        network = self.experiment.network
        return Path(network.checkpoint).resolve() if network.pretrained and network.checkpoint else None

    @property
    def weights(self) -> Path:
        """The weights that it makes."""
        return self.experiment.run.folder.resolve() / "best.ckpt"

    @property
    def command(self) -> str:
        """The command that does the job again."""
        return shlex.join(["openood-dream", "job", *self.words])


def job_experiments(layers: Sequence[str], overrides: Sequence[str]) -> tuple[Experiment, list[Experiment]]:
    """What a job does.

    Args:
        layers: the config files of a benchmark and of one of its methods.
        overrides: the words laid over them, `--method` and `--seed` among them.

    Returns:
        The experiment that trains a network, and one for each detector that scores it.

    Raises:
        InputError: something of them is missing or impossible.
    """
    experiment = load_config(layers, overrides)
    names, search = experiment.benchmark.postprocessors, experiment.at("postprocessor.APS_mode")
    if search is not None:  # what the benchmark's own files say holds for all of its detectors
        overrides = [*overrides, "--postprocessor.APS_mode", str(search)]
    scored = [load_config([*layers, f"postprocessors/{name}.yml"], overrides) for name in names]
    for one in scored:
        check_scoring(one)
    check_training(experiment)
    _ = experiment.run.folder  # InputError if missing
    return experiment, scored


@files.looked_once()
def job(layers: Sequence[str], overrides: Sequence[str]) -> Path:
    """Trains one method with one seed and scores it with its detectors, as a benchmark does; says what it is at.

    Args:
        layers: the config files of a benchmark and of one of its methods.
        overrides: the words laid over them, `--method` and `--seed` among them.

    Returns:
        The run's folder.
    """
    experiment, scored = job_experiments(layers, overrides)
    with Progress().of(job_stages(experiment)):
        return train_and_score(experiment, scored)


def train_and_score(experiment: Experiment, scored: list[Experiment]) -> Path:
    """Trains a network and scores it.

    Args:
        experiment: says how it is trained.
        scored: the same with each of the detectors.

    Returns:
        The run's folder.
    """
    experiment = experiment.changed({})  # a copy, whose decoded images are forgotten with it
    folder = train(experiment)
    score_run(folder, scored, experiment.data)
    return folder


# ------------------------------------------------------------------------------------------------------ ways to run


def waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs in groups to be run one after the other: one that begins with another's weights comes after that."""
    left, found = list(jobs), []
    while left:
        unmade = {one.weights for one in left}
        ready = [one for one in left if one.start not in unmade]
        found.append(ready or left)  # in a circle: each says for itself what it lacks
        left = [one for one in left if one.start in unmade] if ready else []
    return found


def in_turn(jobs: Sequence[Job]) -> None:
    """Runs jobs one after the other in this process; one that fails leaves its log, and the others go on."""
    progress = Progress()
    for number, one in enumerate(jobs, start=1):
        title = f"job {number} of {len(jobs)}: {one.method}, seed {one.seed}"
        try:
            with progress.of(job_stages(one.experiment), title):
                train_and_score(one.experiment, one.scored)
            _ended(one.log, 0)
        except Exception as error:
            lines = [str(error)] if isinstance(error, (InputError, OSError)) else traceback.format_exception(error)
            with artifacts.writing_in(one.log.parent):
                files.write_text(one.log, "".join(lines))
                _ended(one.log, BAD_INPUT if isinstance(error, InputError) else FAILURE)


def at_once(jobs: Sequence[Job], count: int) -> None:
    """Runs jobs in processes of their own, each with a GPU of its own where there are several.

    Args:
        jobs: the jobs.
        count: how many of them run at a time; they share the cores, but none has more threads than this process.
    """
    started, count = Started(), min(count, len(jobs))
    threads = max(1, min(torch.get_num_threads(), cores.granted() // count))
    some_gpu = (
        jobs[0].experiment.run.device in ("auto", "cuda") and torch.cuda.is_available()
    )  # else one of a number, or none
    workers: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for place in range(count):
        workers.put(Worker(visible_gpu(place) if some_gpu else None, started, threads))

    def run(one: Job) -> None:
        worker = workers.get()
        try:
            worker((one.words, str(one.log)), f"{one.method}, seed {one.seed}: ")
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(count) as pool:
        try:
            list(tqdm(pool.map(run, in_order(jobs)), total=len(jobs), desc="benchmark", unit="job"))
        except KeyboardInterrupt:
            started.interrupt()
            raise
        finally:
            started.close()


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs in the order that keeps workers from waiting for one that imagines: first one that does, then those that need none."""
    imagining = [one for one in jobs if imagines(one.experiment)]
    return [*imagining[:1], *(one for one in jobs if not imagines(one.experiment)), *imagining[1:]]


def visible_gpu(place: int) -> str:
    """The name of the GPU that a job gets, in the words of CUDA_VISIBLE_DEVICES, of those that this process may use.

    Args:
        place: the job's among those that run at a time.
    """
    number = place % torch.cuda.device_count()
    given = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return given[number] if number < len(given) else str(number)


class Started:
    """The processes that jobs run in, to be interrupted or ended together; after that none is started, nor a job."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.over = False
        self.guard = threading.Lock()

    def __call__(self, words: list[str], **options: Any) -> subprocess.Popen | None:
        """Starts a process.

        Args:
            words: its command.
            options: those of subprocess.Popen.

        Returns:
            The process, or None after an interruption.
        """
        with self.guard:
            if self.over:
                return None
            self.processes.append(subprocess.Popen(words, **options))  # noqa: S603 # nosec B603 (our own words)
            return self.processes[-1]

    def interrupt(self) -> None:
        """Asks all of them to stop, as the user did."""
        with self.guard:
            self.over = True
            for process in self.processes:
                process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """Lets them end: there is no more to do."""
        with self.guard:
            self.over = True
        for process in self.processes:
            with suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
            process.wait()


class Worker:
    """A process that does jobs, one after the other; each adds to its own log.

    What takes seconds to load is loaded once. The process ends with this one, however that ends, and has a session of its
    own, so that an interruption at the terminal comes to it once, from here. Where a job takes it down, the next job gets
    a new one.

    Args:
        gpu: the only GPU that it sees, in the words of CUDA_VISIBLE_DEVICES; None leaves it all.
        started: what starts it.
        threads: how many it computes with; None: as many as this process.
    """

    def __init__(self, gpu: str | None = None, started: Started | None = None, threads: int | None = None) -> None:
        self.env = {**os.environ, "OMP_NUM_THREADS": str(threads or torch.get_num_threads())}
        self.env |= {PARENT: str(os.getpid())} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        self.start = started or Started()
        self.process: subprocess.Popen | None = None

    def __call__(self, job: tuple[list[str], str], name: str = "") -> None:
        """Does a job, and says what it is at.

        Args:
            job: the words of `openood-dream job`, and the path of the log.
            name: goes before each line that is said.
        """
        words, log = job
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with artifacts.locked(Path(log)):
            if self.start.over:
                return
            if self.process is None or self.process.poll() is not None:
                command = [sys.executable, "-m", "openood_dream", "worker"]
                pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                self.process = self.start(command, **pipes, env=self.env, start_new_session=True)
            if self.process is not None:
                _ended(Path(log), self._ask(self.process, json.dumps([words, log]), name))

    @staticmethod
    def _ask(process: subprocess.Popen, line: str, name: str) -> int:
        """The exit code of a job, or of the process that ended with it; what it says before that is said here."""
        try:
            print(line, file=process.stdin, flush=True)
            for answer in process.stdout:  # type: ignore[union-attr]
                kind, said = json.loads(answer)
                if kind == "code":
                    return int(said)
                say(f"{name}{said}")
        except (BrokenPipeError, ValueError):  # it died, and left half a line perhaps
            pass
        return process.wait() or FAILURE


def places(device_name: str) -> int:
    """How many jobs this machine takes at once: one for each GPU, or as often as this process's threads fit into its cores."""
    if pick_device(device_name).type == "cuda":
        return torch.cuda.device_count() if device_name in ("auto", "cuda") else 1
    return max(1, cores.granted() // torch.get_num_threads())


def _ended(log: Path, code: int) -> None:
    """Notes beside a job's log whether it failed."""
    mark = log.with_suffix(".failed")
    if code:
        files.write_text(mark, f"{code}\n")
    else:
        mark.unlink(missing_ok=True)


def raise_refusal(failed: Sequence[Job]) -> None:
    """Raises the InputError of the first of some jobs that failed, where all of them failed because of their input."""
    if all(one.mark.read_text(encoding="utf-8").strip() == str(BAD_INPUT) for one in failed):
        raise InputError(_end_of_log(failed[0]))


def _end_of_log(job: Job, lines: int = 1) -> str:
    text = job.log.read_text(encoding="utf-8", errors="replace")
    last = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return " / ".join(line.removeprefix("openood-dream: error: ") for line in last)


def failures(job: Job) -> list[dict[str, Any]]:
    """What the leaderboard says of a job that failed, for each detector: the end of its log, and where that is."""
    code = job.mark.read_text(encoding="utf-8").strip()
    about = {
        "method": job.method,
        "seed": job.seed,
        "network": job.experiment.network.name,
        "dataset": job.experiment.dataset.name,
        "outlier_data": outlier_label(job.experiment),
        "text": f"{_end_of_log(job, 3) or f'exit code {code}'} ({job.log})",
    }
    return [about | {"postprocessor": one.postprocessor.name} for one in job.scored]
