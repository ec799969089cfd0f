"""OpenOOD's own pipelines, run from our command and config."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from openood_dream import data, store
from openood_dream.config import GENERATIVE_SETTINGS, Config, InputError, check_name, origin, plain
from openood_dream.networks import backbone_name, pick_device
from openood_dream.openood import compat, registry

SPLITS = ("train", "oe", "val", "test")
OOD_SPLITS = ("val", "nearood", "farood", "csid")
DATASET = "ImglistDataset"


def wanted(config: Config) -> bool:
    """Whether `backend` means OpenOOD; InputError where it asks for OpenOOD and that is not installed."""
    there = compat.installed("openood")
    if config.backend == "openood" and not there:
        where = origin(config, "backend")
        raise InputError(f"{where}: backend: OpenOOD is not installed; {registry.INSTALL}, or use backend: standalone")
    return there and config.backend != "standalone"


def run(config: Config) -> Path:
    """Runs `pipeline` in OpenOOD with what is ours registered, in `num_gpus` processes; returns `output_dir`.

    Without CUDA, with `device: cpu` or `num_gpus: 0` everything runs on the CPU. Names, files, and a folder that exists
    where `merge_option: default` would ask, are checked before anything is written and raise InputError.
    """
    device, processes = pick_device(config.device), (config.num_gpus or 0) * (config.num_machines or 1)
    cpu = device.type != "cuda" or processes == 0
    if not cpu and processes == 1 and device.index is not None:
        torch.cuda.set_device(device)  # OpenOOD takes the current one
    for section in ("pipeline", "dataset", "network", "preprocessor"):
        if not isinstance(config.get(section), dict):
            raise InputError(f"config: {section}: missing; add a config file that sets it")
    whole = complete(config)
    with registration(cpu):
        check(whole)
    check_output(config)
    data.ensure(config)
    check_files(config, whole)
    with own_stdout(), compat.enabled(cpu):
        from openood.utils import launch

        if processes > 1 and cpu:
            port = import_module("openood.utils.launch")._find_free_port()
            torch.multiprocessing.spawn(work_on_cpu, (processes, port, whole), nprocs=processes)
        else:
            launch(
                work,
                config.num_gpus or 0,
                num_machines=config.num_machines or 1,
                machine_rank=config.machine_rank or 0,
                dist_url="auto",
                args=(whole, cpu),
            )
    return Path(config.output_dir)


def complete(config: Config) -> dict[str, Any]:
    """The config as plain dicts, with what OpenOOD's pipelines need and without what they stumble over."""
    whole = config.to_dict()
    whole.pop("benchmark", None)  # labels with dots in them are no keys of OpenOOD's Config
    dataset, outside = whole["dataset"], whole.get("ood_dataset") or {}
    for section, splits in ((dataset, SPLITS), (outside, OOD_SPLITS)):
        section.setdefault("split_names", [split for split in splits if isinstance(section.get(split), dict)])
        for key, least in (("num_gpus", 0), ("num_workers", 0), ("num_machines", 1)):
            section.setdefault(key, whole.get(key) or least)
    dataset.setdefault("interpolation", "bilinear")
    for split in filter(dataset.get, SPLITS):
        dataset[split] = {"dataset_class": DATASET, "shuffle": split in ("train", "oe"), **dataset[split]}
    outside.setdefault("name", f"{dataset.get('name')}_ood")
    outside.setdefault("num_classes", dataset.get("num_classes"))
    outside.setdefault("dataset_class", DATASET)
    outside.setdefault("shuffle", False)
    if (dataset.get("oe") or {}).get("imglist_pth") == data.IMAGINED and name_of(whole, "pipeline").startswith("test"):
        dataset["split_names"] = [split for split in dataset["split_names"] if split != "oe"]  # nothing to draw for
    network = whole.get("network")
    network.setdefault("num_gpus", whole.get("num_gpus") or 0)
    while isinstance(network, dict):
        generative = network.get("name") in GENERATIVE_SETTINGS
        if generative or str(network.get("name")).startswith("timm:"):
            network.setdefault("image_size", dataset.get("image_size"))
        if generative:
            network.setdefault("normalization_type", dataset.get("normalization_type"))
        network = network.get("backbone")
    return whole


def check(config: dict[str, Any]) -> None:
    """Raises InputError for a name that nobody knows, for which OpenOOD would raise a KeyError much later."""

    pipeline, network = name_of(config, "pipeline"), name_of(config, "network")
    check_name("pipeline.name", pipeline, registry.known("pipelines.get_pipeline"))
    if network.startswith("timm:"):
        backbone_name(network, "config: network.name")
    else:
        check_name("network.name", network, [*registry.OUR_NETWORKS, *registry.known("networks.get_network")])
    preprocessors = [registry.PREPROCESSOR, *registry.known("preprocessors.get_preprocessor")]
    check_name("preprocessor.name", name_of(config, "preprocessor"), preprocessors)
    if pipeline in ("train", "train_oe"):
        registry.check_trainer(config)
    if pipeline in ("test_ood", "test_ood_aps"):
        registry.check_postprocessor(config)


def check_files(config: Config, whole: dict[str, Any]) -> None:
    """Raises InputError for an image list or checkpoint that is not there, which OpenOOD would look for much later.

    `whole` is the complete config.
    """
    wanted = {f"dataset.{split}.imglist_pth" for split in whole["dataset"]["split_names"]}
    if name_of(config, "pipeline").startswith("test"):
        for split in (whole.get("ood_dataset") or {}).get("split_names", []):
            names = config.at(f"ood_dataset.{split}.datasets", [None])
            wanted |= {f"ood_dataset.{'.'.join(filter(None, [split, name]))}.imglist_pth" for name in names}
    if config.network.pretrained:
        wanted.add("network.checkpoint")
    for key in sorted(wanted):
        path = config.at(key)
        if isinstance(path, str) and path != data.IMAGINED and not Path(path).is_file():
            raise InputError(f"{origin(config, key)}: {key}: no such file {path!r}; check the path")
        if key.endswith("imglist_pth") and isinstance(path, str) and path != data.IMAGINED:
            check_imglist(path)


def check_imglist(path: str) -> None:
    """Raises InputError for a line that OpenOOD would not read, or that leads out of the data folder."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, label = line.partition(" ")
        store.inside(name, f"{path}:{number}")
        if not re.fullmatch(r"-?[0-9]+\s*|\{.*\}\s*", label):  # it takes a mapping of labels too
            remedy = "delete blank lines and give every image a label"
            if " " in name_in(line):
                remedy = "OpenOOD splits a line at its first space, so rename images with spaces in their names"
            raise InputError(
                f"{path}:{number}: expected 'path label', got {line.strip()!r}; {remedy}, or use backend: standalone"
            )


def name_in(line: str) -> str:
    """The image that a line of a list names, as standalone reads it, or nothing."""
    found = store.IMGLIST_LINE.fullmatch(line)
    return found[1] if found else ""


def name_of(config: dict[str, Any], section: str) -> str:
    return str((config.get(section) or {}).get("name"))


def check_output(config: Config) -> None:
    """Raises InputError where OpenOOD would ask whether to write into a folder, and nobody can answer."""
    alone = (config.num_gpus or 0) * (config.num_machines or 1) <= 1
    if config.save_output and config.merge_option == "default" and os.path.isdir(config.output_dir):
        if not alone or sys.stdin is None or not sys.stdin.isatty():
            raise InputError(
                f"{config.output_dir}: exists already (output_dir); choose another mark, or --merge_option merge"
            )


@contextmanager
def registration(cpu: bool) -> Iterator[None]:
    """Compatible and registered for the length of the block, or longer where register() was called before."""
    before = registry.registered()
    with compat.enabled(cpu):
        registry.register()
        try:
            yield
        finally:
            if not before:
                registry.unregister()


def work(config: dict[str, Any], cpu: bool) -> None:
    """One process's part of a run; the main one leaves the config as plain YAML in the run's folder."""
    with registration(cpu):
        from openood.pipelines import get_pipeline
        from openood.utils import Config as HostConfig
        from openood.utils import comm

        host = HostConfig(config)
        pipeline = get_pipeline(host)
        module = sys.modules[type(pipeline).__module__]
        ask = module.setup_logger

        def prepared(config: Any) -> None:
            ask(config)  # whether to write into a folder that exists
            if comm.is_main_process() and str(host.pipeline.name).startswith("test"):
                Path(host.output_dir, "ood.csv").unlink(missing_ok=True)  # OpenOOD would add its rows to the old ones

        with compat.replaced(module, setup_logger=prepared):
            pipeline.run()
        if comm.is_main_process() and host.save_output:
            store.write_text(Path(host.output_dir) / "config.yml", yaml.safe_dump(plain(host), sort_keys=False))


def work_on_cpu(rank: int, processes: int, port: int, config: dict[str, Any]) -> None:
    """`work` in one of several processes on this machine's CPU, for which OpenOOD's launch has no place."""
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, world_size=processes, rank=rank)
    try:
        with compat.enabled(cpu=True):
            comm = import_module("openood.utils.comm")
            comm._LOCAL_PROCESS_GROUP = torch.distributed.group.WORLD
        work(config, True)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def own_stdout() -> Iterator[None]:
    """Gives sys.stdout back after OpenOOD, whose log takes its place and would close it when it is collected."""
    stdout = sys.stdout
    try:
        yield
    finally:
        log, sys.stdout = sys.stdout, stdout
        while log is not stdout and hasattr(log, "console"):
            log.console, log = io.StringIO(), log.console


def status() -> dict[str, Any]:
    """What `doctor` says of OpenOOD: `found`, and where it is, `path`, `version`, `commit`, `works` and `missing`.

    `works` lists names by kind, ours included, `missing` has a line for each absent extra that says what it disables.
    Where OpenOOD is there and cannot be used, `error` says why in place of `works`.
    """
    if not compat.installed("openood"):
        return {"found": False, "missing": {"openood": f"OpenOOD is not installed; {registry.INSTALL}"}}
    folder = Path(compat.folder("openood"))
    found = {"found": True, "path": str(folder), **_version(folder)}
    try:
        with registration(cpu=False):
            works = {factory.partition(".")[0]: registry.known(factory) for factory in registry.FACTORIES}
            works["trainers"] = sorted({*works["trainers"], *registry.TRAINERS})
            works["preprocessors"] = sorted({*works["preprocessors"], registry.PREPROCESSOR})
            works["networks"] = [*registry.OUR_NETWORKS, *works["networks"]]
            works["postprocessors"] = registry.postprocessor_names()
            found["works"] = works
    except Exception as error:  # doctor reports whatever is wrong with an installation, and goes on
        found["error"] = f"{type(error).__name__}: {error}"
    return {**found, "missing": compat.missing()}


def _version(folder: Path) -> dict[str, str | None]:
    """Version and commit, as far as pip or a checkout know them."""
    try:
        distribution = metadata.distribution("openood")
    except metadata.PackageNotFoundError:
        return {"version": None, "commit": _head(folder.parent)}
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    return {"version": distribution.version, "commit": url.get("vcs_info", {}).get("commit_id") or _head(folder.parent)}


def _head(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 # nosec B603 (fixed words and a path)
    return done.stdout.strip() or None
