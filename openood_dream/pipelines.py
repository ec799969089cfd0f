"""Whole jobs: train a network, score it, and compare methods over seeds. OpenOOD's names: train, train_oe, test_ood."""

from __future__ import annotations

import importlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm

import openood_dream.openood
from openood_dream import data, store
from openood_dream.config import (
    BenchmarkSettings,
    Config,
    InputError,
    OutlierSettings,
    check_name,
    load_config,
    origin,
    quoted,
    settings,
)
from openood_dream.evaluate import TRANSFORM, Passes, accuracy, evaluate, find_postprocessor, passes_dir
from openood_dream.generative.network import Generative, pixel_probability
from openood_dream.networks import check_network, get_network, load_weights, pick_device, pick_dtype
from openood_dream.trainers import get_trainer, loop, processes

TRAINED, SCORED = "train.json", "evaluate.json"
STARTED = "training.json"  # whose run is in a folder, while it is not finished


def run(files: list[str], overrides: list[str]) -> Path:
    """Runs the pipeline that the config names, OpenOOD's included; returns the folder it wrote, or the report."""
    config = load_config(files, overrides)
    name = (config.pipeline or {}).get("name")
    if name == "benchmark":
        return benchmark(files, overrides)
    if openood_dream.openood.wanted(config):
        return openood_dream.openood.run(config)
    known = own_pipelines()
    if name not in known:
        check_name("pipeline.name", name, [*known, "benchmark"], origin(config, "pipeline.name"))
    return known[name](config)


def own_pipelines() -> dict[str, Callable[[Config], Path]]:
    """OpenOOD's pipelines that run without it."""
    return {"train": train, "train_oe": train, "test_ood": test}


def hosted(config: Config, standalone: Callable[[Config], Path]) -> Path:
    """Runs `train` or `test`, or OpenOOD's pipeline of that kind where `backend` means OpenOOD."""
    if not openood_dream.openood.wanted(config):
        return standalone(config)
    kind = [name for name, ours in own_pipelines().items() if ours is standalone]
    name = (config.pipeline or {}).get("name")
    if name not in kind:
        where = origin(config, "pipeline.name")
        raise InputError(f"{where}: pipeline.name: expected {' or '.join(kind)}, got {name!r}")
    return openood_dream.openood.run(config)


def require(config: Config, *keys: str) -> None:
    """Raises InputError for the first of `keys` that the config lacks."""
    for key in keys:
        if config.at(key) is None:
            where = origin(config, key)
            raise InputError(f"{where}: {key}: missing; add a config file that sets it, or --{key} on the command line")


def check_dataset(config: Config) -> None:
    """Raises InputError where a config lacks what every pipeline needs of its data set."""
    require(config, "dataset.name", "dataset.num_classes", "dataset.image_size", "dataset.pre_size")
    for key in ("num_classes", "image_size", "pre_size"):
        data.whole(config, f"dataset.{key}")
    for key in ("dataset.num_workers", "ood_dataset.num_workers"):
        value = config.at(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            where = origin(config, key)
            raise InputError(f"{where}: {key}: expected an integer >= 0, got {value!r}")


def check_optimizer(config: Config) -> None:
    """Raises InputError where a config lacks a number that training takes from `optimizer`."""
    keys = ("optimizer.lr", "optimizer.momentum", "optimizer.weight_decay")
    require(config, "optimizer.num_epochs", *keys)
    data.whole(config, "optimizer.num_epochs")
    for key in keys:
        value, sign = config.at(key), ">=" if key.endswith("decay") else ">"  # Nesterov needs a momentum
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (value > 0 or value == 0 and sign == ">="):
            where = origin(config, key)
            raise InputError(f"{where}: {key}: expected a number {sign} 0, got {value!r}")
    clip = config.optimizer.clip_norm
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float)) or clip <= 0):
        where = origin(config, "optimizer.clip_norm")
        raise InputError(f"{where}: optimizer.clip_norm: expected a number > 0 or null, got {clip!r}")


# --------------------------------------------------------------------------------------------------------- training


def train(config: Config) -> Path:
    """Trains `trainer` on `dataset` and returns the run's folder: config.yml, best.ckpt, last_epoch*.ckpt, train.json.

    Imagines the outliers first where `dataset.oe.imglist_pth` is `imagined`. A finished run of the same inputs is
    reused, and one that was interrupted goes on, unless `resume: false`; a folder of other inputs is refused unless
    `merge_option: merge`. Processes that torchrun started train together, each with its share of every batch.
    """
    check_dataset(config)
    check_optimizer(config)
    require(config, "output_dir", "network.name")
    check_network(config)
    cls = get_trainer(config)
    with processes.joined(config.device) as device, ExitStack() as alone:
        processes.first_process_only(lambda: prepare(config))
        train_loader, val_loader = data.id_loader(config, "train", augment=True), data.id_loader(config, "val")
        outlier_loader, outliers = outlier_set(config) if cls.auxiliary else (None, None)
        loaders = [loader for loader in (train_loader, outlier_loader) if loader]
        lessons, sources = taught(config) if cls.taught else ({}, None)
        inputs = {
            "dataset": {key: config.dataset.get(key) for key in ("name", "num_classes", *TRANSFORM)},
            "batch_size": [loader.batch_size for loader in loaders],
            "data": [list_identity(config, "train"), list_identity(config, "val")],
            "outliers": outliers or sources,
            "network": network_identity(config),
            "trainer": settings(config, "trainer").model_dump(exclude={"implementation"}),
            "optimizer": config.optimizer.to_dict(),
            "preprocessor": (config.preprocessor or Config()).to_dict(),
            "precision": config.precision,
            "seed": config.seed,
        }
        identity, out = store.fingerprint(inputs), Path(config.output_dir)
        if processes.first_process_only(lambda: trained(out, identity, config)):
            return out
        torch.manual_seed(config.seed)
        np.random.seed(config.seed)
        net = get_network(config).to(device)

        def taken() -> bool:
            alone.enter_context(store.exclusive(out))
            return trained(out, identity, config)  # by another process, while this one waited

        if processes.first_process_only(taken):
            return out
        if processes.first():
            (out / TRAINED).unlink(missing_ok=True)  # of another configuration, whose weights are replaced from here on
            store.remove_unfinished(out)
            store.write_json(out / STARTED, {"hash": identity})
        if config.compile:
            net.compile()
        shares = [processes.share(loader, config.seed) for loader in loaders]
        trainer = cls(processes.together(net), *shares, config, **lessons)
        dtype, start = pick_dtype(config.precision, device), time.perf_counter()
        history = loop.fit(
            trainer,
            lambda net: validate(net, val_loader, device, dtype),
            out,
            epochs=config.optimizer.num_epochs,
            seed=config.seed,
            identity=identity,
            resume=settings(config, "").resume,
            title=f"train: {label_of(config)}, seed {config.seed}",
        )
        if processes.first():
            store.write_text(out / "config.yml", yaml.safe_dump(config.to_dict(), sort_keys=False))
            store.write_json(
                out / TRAINED,
                {
                    "hash": identity,
                    "inputs": inputs,
                    "seconds": round(time.perf_counter() - start, 3),
                    "epochs": history,
                    "parameters": sum(p.numel() for p in net.parameters()),
                },
            )
            (out / loop.TRAINING).unlink()
            (out / STARTED).unlink()
        processes.first_process_only(lambda: None)  # the others wait until all is written
    return out


def trained(out: Path, identity: str, config: Config) -> bool:
    """Whether the run of `identity` is finished; InputError for weights of another one, unless they may be replaced."""
    record = next((out / name for name in (TRAINED, STARTED) if (out / name).exists()), None)
    if record is not None and store.read_record(record)["hash"] == identity:
        return record.name == TRAINED
    if config.merge_option != "merge" and (record is not None or (out / "best.ckpt").exists()):
        raise InputError(
            f"{out}: holds a run of another configuration; choose another output_dir or mark, or --merge_option merge"
        )
    return False


def network_identity(config: Config) -> dict[str, Any]:
    """What of `network` decides about the weights that training begins with: a checkpoint by its content."""
    network = {key: value for key, value in config.network.to_dict().items() if key != "num_gpus"}
    checkpoint = network.get("checkpoint")
    if checkpoint is None or not network.get("pretrained"):
        return network
    try:
        return network | {"checkpoint": store.sha256(checkpoint)}
    except OSError as error:
        where = origin(config, "network.checkpoint")
        raise InputError(
            f"{where}: network.checkpoint: cannot read {checkpoint!r} ({error.strerror}); check the path"
        ) from None


def validate(net: nn.Module, *args: Any) -> float:
    """What the best checkpoint is chosen by: accuracy, or a generative network's mean probability of a subpixel."""
    return pixel_probability(net, *args) if isinstance(net, Generative) else accuracy(net, *args)


def prepare(config: Config) -> None:
    """Makes what training reads and what is not there yet: the built-in benchmark, the imagined images."""
    data.ensure(config)
    if get_trainer(config).auxiliary and config.at("dataset.oe.imglist_pth") == data.IMAGINED:
        require(config, "dream")
        from openood_dream import quality

        quality.chosen(config)


def taught(config: Config) -> tuple[dict[str, Any], list[str]]:
    """What OAL learns from besides its images, as the keywords of its trainer, and what identifies it.

    `embeddings` and `latents` are those of the dream section. `teacher` is trained first where it has no checkpoint.
    """
    require(config, "dream")
    from openood_dream import imagine, outliers

    sampled, drawn, teacher = outliers.run(config), imagine.latents(config), settings(config, "trainer").teacher
    own = Config(config.to_dict())
    own.network = {"name": teacher.network, "args": teacher.args}
    checkpoint = teacher.checkpoint
    if checkpoint is None:
        own.trainer, own.method, own.seed, own.merge_option = {"name": "base"}, "teacher", 0, "merge"
        own.optimizer.update(num_epochs=teacher.epochs, lr=teacher.lr)
        about = [own.network, own.optimizer, own.dataset, own.preprocessor, own.precision]
        own.output_dir = str(Path(settings(config, "dream").cache_dir, f"teacher-{store.fingerprint(about)}"))
        checkpoint = train(own) / "best.ckpt"
    net = get_network(own)
    load_weights(net, checkpoint)
    lessons = {
        "teacher": net,
        "embeddings": outliers.load(sampled)[1],
        "latents": store.read_tensors(drawn.path / "latents.safetensors")["latents"],
    }
    return lessons, [sampled.hash, drawn.hash, store.sha256(Path(checkpoint))]


def label_of(config: Config) -> str:
    """What a run is called in tables: its label in the benchmark, else its trainer's name."""
    return config.method or config.trainer.name


def list_identity(config: Config, split: str) -> str:
    section = data.section_of(config, ("dataset", split))
    return store.list_digest(section.imglist_pth, section.data_dir, f"dataset.{split}.imglist_pth")


def outlier_set(config: Config) -> tuple[torch.utils.data.DataLoader, str]:
    """The loader of `dataset.oe`, with training augmentation, and what identifies its images.

    `imglist_pth: imagined` is the image set of the dream section, drawn first if need be.
    """
    require(config, "dataset.oe.imglist_pth", "dataset.oe.batch_size")
    if config.dataset.oe.imglist_pth == data.IMAGINED:
        require(config, "dream")
        from openood_dream import quality

        imglist, folder, identity = quality.chosen(config)
        config.dataset.oe.update(imglist_pth=str(imglist), data_dir=str(folder))
        config.outlier_data = f"imagined ({settings(config, 'dream').outliers.method})"
    else:
        identity = list_identity(config, "oe")
    loader = data.id_loader(config, "oe", augment=True)
    if get_trainer(config).inliers:
        data.check_labels(loader.dataset, config.dataset.num_classes)
    return loader, identity


# ------------------------------------------------------------------------------------------------------- evaluation


def test(config: Config) -> Path:
    """Scores `network.checkpoint` with `postprocessor` on `ood_dataset`; returns the folder with ood.csv and scores."""
    check_dataset(config)
    find_postprocessor(config)
    require(config, "network.checkpoint", "ood_dataset", "output_dir")
    data.ensure(config)
    config.network.pretrained = True
    net = get_network(config)
    out, checkpoint = Path(config.output_dir), Path(config.network.checkpoint)
    passes = Passes(net, config, checkpoint, passes_dir(checkpoint, out))
    inputs, record = {"checkpoint": passes.checkpoint}, out / SCORED
    if (out / "ood.csv").exists() and config.merge_option != "merge":
        if not record.exists() or store.read_record(record)["inputs"] != inputs:
            raise InputError(
                f"{out}: holds scores of another checkpoint; choose another output_dir or mark, or --merge_option merge"
            )
    evaluate(passes, config, out)
    store.write_json(record, {"hash": store.fingerprint(inputs), "inputs": inputs})
    return out


def score_run(folder: Path, configs: list[Config]) -> None:
    """Scores a trained run with several postprocessors, one pass for all; each has a folder of its own in the run's."""
    if not unscored(folder, configs):
        return
    with store.exclusive(folder):
        todo = unscored(folder, configs)  # another process may have scored some while this one waited
        if not todo:
            return
        net, checkpoint = get_network(todo[0][0]), folder / "best.ckpt"
        load_weights(net, checkpoint)
        passes = Passes(net, todo[0][0], checkpoint, folder / "passes")
        for config, out, inputs in todo:
            (out / SCORED).unlink(missing_ok=True)
            evaluate(passes, config, out)
            store.write_json(out / SCORED, {"hash": store.fingerprint(inputs), "inputs": inputs})


def unscored(folder: Path, configs: list[Config]) -> list[tuple[Config, Path, dict[str, Any]]]:
    """The configs with which a trained run is still to be scored, each with its folder and what its scores depend on."""
    run, todo = store.read_record(folder / TRAINED)["hash"], []
    for config in configs:
        section = config.postprocessor
        inputs = {
            "run": run,
            "postprocessor": section.to_dict(),
            "ood": ood_identity(config),
            "test": list_identity(config, "test"),
        }
        done = folder / section.name / SCORED
        if not (done.exists() and store.read_record(done)["hash"] == store.fingerprint(inputs)):
            todo.append((config, done.parent, inputs))
    return todo


def ood_identity(config: Config) -> dict[str, str]:
    """A fingerprint of each OOD and csid test list, by group/name; InputError for a list or an image that is not there."""
    digests = {}
    for group, name in [*data.ood_sets(config), *(("csid", name) for name in data.csid_sets(config))]:
        section, key = data.section_of(config, ("ood_dataset", group, name)), f"ood_dataset.{group}.{name}.imglist_pth"
        digests[f"{group}/{name}"] = store.list_digest(section.imglist_pth, section.data_dir, key)
    return digests


# -------------------------------------------------------------------------------------------------------- benchmark


class JobsFailed(Exception):
    """Some jobs of a benchmark failed; `report` is the path of the report on the others, None where all failed."""

    def __init__(self, message: str, report: Path | None) -> None:
        super().__init__(message)
        self.report = report


class Job(NamedTuple):
    """A method with a seed: the words of `openood-dream job` that train and score it, and where its log goes."""

    method: str
    seed: int
    words: list[str]
    log: Path
    config: Config
    scored: list[Config]


def benchmark(
    files: list[str],
    overrides: list[str],
    methods: list[str] | None = None,
    seeds: int | None = None,
    executor: str = "local",
    workers: int | None = 1,
) -> Path:
    """Trains every method with every seed, scores each with every postprocessor, and writes leaderboard and report.

    `methods` picks some of the config's, `seeds` takes the first so many. Returns the path of the report. Every
    config and list is checked before anything is computed; finished parts are reused. Jobs run one after the other in
    this process, or `workers` at a time in processes of their own (None: as many as there are GPUs, or times this
    process's threads fit into the cores), or on a Ray cluster; the results are the same. A job that fails stands in the
    report with the end of its log, the others go on, and JobsFailed is raised at the end.
    """
    from openood_dream import report

    start = time.perf_counter()
    jobs = benchmark_jobs(files, overrides, methods, seeds)
    data.ensure(jobs[0].config)
    for config in [config for job in jobs for config in job.scored]:
        ood_identity(config)
        real = get_trainer(config).auxiliary and config.at("dataset.oe.imglist_pth") != data.IMAGINED
        for split in ("train", "val", "test", *(["oe"] if real else [])):
            list_identity(config, split)
    out = store.writable(Path(jobs[0].config.root or "results"))
    count = places(jobs[0].config) if workers is None else workers
    if executor == "ray":
        from openood_dream import distributed

        for _ in distributed.each(worker, [(job.words, str(job.log)) for job in jobs], jobs[0].config.device or "auto"):
            pass
    elif count > 1 and len(jobs) > 1:
        at_once(jobs, count)
    else:
        in_turn(jobs)
    bad = [job for job in jobs if job.log.with_suffix(".failed").exists()]
    good = [job for job in jobs if not job.log.with_suffix(".failed").exists()]
    failures = [failure(job, config.postprocessor.name) for job in bad for config in job.scored]
    which = ", ".join(f"{job.method} seed {job.seed} ({job.log})" for job in bad)
    if not good:
        raise JobsFailed(f"all {len(jobs)} jobs failed: {which}", None)
    with store.exclusive(out):
        store.remove_unfinished(out)
        page = report.write(
            out,
            [Path(job.config.output_dir) for job in good],
            [trained_config(job) for job in good],
            time.perf_counter() - start,
            [command_line(files, overrides, methods, seeds), *(row_command(job) for job in jobs)],
            failures,
        )
    if failures:
        raise JobsFailed(f"{len(bad)} of {len(jobs)} jobs failed: {which}", page)
    return page


def benchmark_jobs(files: list[str], overrides: list[str], methods: list[str] | None, seeds: int | None) -> list[Job]:
    """The jobs of a benchmark, by seed and then method; InputError for anything wrong with their configs."""
    common = load_config(files, overrides)
    require(common, "benchmark")
    if common.backend == "openood":
        where = origin(common, "backend")
        raise InputError(f"{where}: backend: the benchmark runs standalone, got 'openood'; run its methods one by one")
    plan = settings(common, "benchmark")
    chosen = list(plan.methods) if methods is None else methods
    if not chosen:
        raise InputError(f"--methods: expected some of {', '.join(plan.methods)}, got none")
    for name in chosen:
        if name not in plan.methods:
            check_name("--methods", name, plan.methods, "command line")
    if seeds is not None and not 1 <= seeds <= len(plan.seeds):
        raise InputError(f"--seeds: expected 1 to {len(plan.seeds)} (benchmark.seeds), got {seeds}")
    jobs = []
    for seed in plan.seeds[:seeds]:
        for name, label, varied in variants(plan, chosen):
            layers = [*files, *plan.methods[name]]
            keys = [*overrides, "--method", quoted(label), "--seed", str(seed), *varied]
            config, scored = job_configs(layers, keys)
            log = Path(config.root or "results") / "logs" / f"{label}-s{seed}.log"
            jobs.append(Job(label, seed, ["--config", *map(os.fspath, layers), *keys], log, config, scored))
    return jobs


def job_configs(layers: list[str], overrides: list[str]) -> tuple[Config, list[Config]]:
    """The config that trains a method, and one for each of its postprocessors."""
    config = load_config(layers, overrides)
    require(config, "benchmark", "output_dir")
    names = settings(config, "benchmark").postprocessors
    scored = [load_config([*layers, f"postprocessors/{name}.yml"], overrides) for name in names]
    for one in scored:
        find_postprocessor(one)
    check_dataset(config)
    check_optimizer(config)
    get_trainer(config)
    check_network(config)
    return config, scored


def job(files: list[str], overrides: list[str]) -> Path:
    """Trains one method with one seed and scores it with its postprocessors, as a benchmark does; returns the folder."""
    config, scored = job_configs(files, overrides)
    folder = train(config)
    score_run(folder, scored)
    return folder


def in_turn(jobs: list[Job]) -> None:
    """Runs jobs in this process."""
    for one in jobs:
        try:
            score_run(train(one.config), one.scored)
            ended(one.log, 0)
        except Exception as error:
            lines = [str(error)] if isinstance(error, (InputError, OSError)) else traceback.format_exception(error)
            with store.made(one.log.parent):
                store.write_text(one.log, "".join(lines))
                ended(one.log, 1)


def at_once(jobs: list[Job], count: int) -> None:
    """Runs `count` jobs at a time in processes of their own, each with a GPU of its own where there are several."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(count):
        free.put(place)
    started = Started()

    def run(one: Job) -> None:
        place = free.get()
        gpu = place % torch.cuda.device_count() if torch.cuda.is_available() else None
        try:
            run_logged((one.words, str(one.log)), gpu, started)
        finally:
            free.put(place)

    with ThreadPoolExecutor(count) as pool:
        try:
            list(tqdm(pool.map(run, jobs), total=len(jobs), desc="benchmark", unit="job"))
        except KeyboardInterrupt:
            started.interrupt()
            raise


class Started:
    """The processes that jobs run in, to be interrupted together; after that none is started."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.interrupted = False
        self.guard = threading.Lock()

    def __call__(self, words: list[str], **options: Any) -> subprocess.Popen | None:
        with self.guard:
            if self.interrupted:
                return None
            self.processes.append(subprocess.Popen(words, **options))  # noqa: S603 # nosec B603 (our own words)
            return self.processes[-1]

    def interrupt(self) -> None:
        with self.guard:
            self.interrupted = True
            for process in self.processes:
                process.send_signal(signal.SIGINT)


def places(config: Config) -> int:
    """How many jobs this machine takes at once: one for each GPU, or as often as this process's threads are there."""
    if pick_device(config.device).type == "cuda":
        return torch.cuda.device_count() if config.device in (None, "auto", "cuda") else 1
    return max(1, (os.cpu_count() or 1) // torch.get_num_threads())


def worker() -> Callable[[tuple[list[str], str]], None]:
    """What a Ray worker does with a job."""
    return run_logged


def run_logged(job: tuple[list[str], str], gpu: int | None = None, started: Started | None = None) -> None:
    """Runs `openood-dream job` with these words in a process, with as many threads as this one has, and keeps its log."""
    words, log = job
    env = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    env |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with store.locked(Path(log)), open(log, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "openood_dream.cli", "job", *words]
        process = (started or Started())(command, stdout=file, stderr=subprocess.STDOUT, env=env)
        if process is not None:
            ended(Path(log), process.wait())


def ended(log: Path, code: int) -> None:
    """Notes beside a job's log whether it failed."""
    mark = log.with_suffix(".failed")
    if code:
        store.write_text(mark, f"{code}\n")
    else:
        mark.unlink(missing_ok=True)


def failure(job: Job, postprocessor: str) -> dict[str, Any]:
    """What the leaderboard says of a job that failed: the end of its log, and where that is."""
    from openood_dream import leaderboard

    lines = [
        line.strip() for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    code = job.log.with_suffix(".failed").read_text().strip()
    return {
        "method": job.method,
        "seed": job.seed,
        "postprocessor": postprocessor,
        "network": job.config.network.name,
        "dataset": job.config.dataset.name,
        "outlier_data": leaderboard.outlier_data(job.config, job.config),
        "text": f"{' / '.join(lines[-3:]) or f'exit code {code}'} ({job.log})",
    }


def trained_config(job: Job) -> Config:
    """The config of a finished job, which knows the outliers that it was trained with."""
    saved = Config(yaml.safe_load((Path(job.config.output_dir) / "config.yml").read_text(encoding="utf-8")))
    if saved.outlier_data:
        job.config.outlier_data = saved.outlier_data
    return job.config


def row_command(job: Job) -> str:
    """The command that makes a run again."""
    return shlex.join(["openood-dream", "job", *job.words])


def variants(plan: BenchmarkSettings, methods: list[str]) -> list[tuple[str, str, list[str]]]:
    """(method, label, overrides) of everything that is trained: each method, or with `vary` each with each value."""
    if plan.vary is None:
        return [(name, name, []) for name in methods]
    word = plan.vary.rpartition(".")[2]
    return [
        (name, f"{name}, {word} {value}", [f"--{plan.vary}", json.dumps(value)])
        for name in methods
        for value in plan.values
    ]


def command_line(files: list[str], overrides: list[str], methods: list[str] | None, seeds: int | None) -> str:
    """The command that makes a benchmark again."""
    chosen = ["--methods", ",".join(methods)] if methods is not None else []
    chosen += ["--seeds", str(seeds)] if seeds is not None else []
    return shlex.join(["openood-dream", "benchmark", "--config", *map(os.fspath, files), *chosen, *overrides])


ROOMS = {"sample": "outliers", "synthesize": "imagine"}  # of the stages that are not called like theirs


def stage(name: str, files: list[str], overrides: list[str]) -> Any:
    """Runs one stage of the imagination with all that it needs, and returns its artifact."""
    room = importlib.import_module(f"openood_dream.{ROOMS.get(name, name)}")
    config = imagining(files, overrides)
    return room.train(config) if name == "generator" else room.run(config)


def imagining(files: list[str], overrides: list[str]) -> Config:
    """A config that the stages of the imagination can run with; makes the data of the digits benchmark."""
    config = load_config(files, overrides)
    check_dataset(config)
    require(config, "dream")
    data.ensure(config)
    return config


def plot(
    kind: str,
    files: list[str],
    overrides: list[str],
    classes: list[str],
    out: Path | None,
    outliers: list[str] | None = None,
    **options: Any,
) -> Path:
    """Draws the figure `kind` of gallery.py with all the stages that it needs, and returns the path of the PNG.

    Each of `outliers` is a dream.outliers.method, or a config file that is laid over the others, and none means the
    config as it is. Raises InputError where `out` does not end in .png or cannot be written.
    """
    if out is not None and out.suffix != ".png":
        raise InputError(f"--out: expected a file name that ends in .png, got {str(out)!r}")
    methods = get_args(OutlierSettings.model_fields["method"].annotation)
    configs = {}
    for name in outliers or [""]:
        keys = ["--dream.outliers.method", name] if name in methods else []
        configs[name] = imagining([*files, *([name] if name and not keys else [])], [*overrides, *keys])
    config = next(iter(configs.values()))
    if out is None:
        words = [kind, *classes, *(value for value in options.values() if value != "pca")]
        out = Path(config.root or "results") / ("-".join(re.sub(r"[^\w.]+", "_", word) for word in words) + ".png")
    with store.made(out.parent):
        from openood_dream import gallery

        png = getattr(gallery, kind)(configs if kind != "line" else config, classes, **options)
        with store.replacing(out) as work:
            work.write_bytes(png)
    return out


def dry_run(files: list[str], overrides: list[str]) -> str:
    """What `synthesize` would draw, and how long it would take here, in words."""
    from openood_dream import imagine

    return imagine.forecast(imagining(files, overrides))
