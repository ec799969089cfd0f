"""OpenOOD's own pipelines, run from our command and config."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from openood_dream import plugins
from openood_dream.config.tree import lookup, plain
from openood_dream.datasets.imglist import IMGLIST_LINE, check_inside
from openood_dream.datasets.settings import IMAGINED
from openood_dream.device import pick_device
from openood_dream.errors import InputError
from openood_dream.experiment import Experiment
from openood_dream.openood import adapted, compat, factories, registry
from openood_dream.store.files import write_text

SPLITS = ("train", "oe", "val", "test")
OOD_SPLITS = ("val", "nearood", "farood", "csid")
DATASET = "ImglistDataset"
NEEDED = ("pipeline", "dataset", "network", "preprocessor")  # sections that all of OpenOOD's pipelines read


def wanted(experiment: Experiment) -> bool:
    """Whether `backend` means OpenOOD; InputError where it asks for OpenOOD and that is not installed."""
    there, backend = compat.installed("openood"), experiment.run.backend
    if backend == "openood" and not there:
        raise experiment.error("backend", f"OpenOOD is not installed; {registry.INSTALL}, or use backend: standalone")
    return there and backend != "standalone"


def run(experiment: Experiment) -> Path:
    """Runs `pipeline` in OpenOOD with what is ours registered, in `num_gpus` processes.

    Without CUDA, with `device: cpu` or `num_gpus: 0` everything runs on the CPU. Names, files, and a folder that exists
    where `merge_option: default` would ask, are checked before anything is written.

    Returns:
        `output_dir`.

    Raises:
        InputError: the config or its data are not fit for it.
    """
    settings = experiment.run
    device, processes = pick_device(settings.device), _processes(experiment)
    cpu = device.type != "cuda" or processes == 0
    if not cpu and processes == 1 and device.index is not None:
        torch.cuda.set_device(device)  # OpenOOD takes the current one
    for section in NEEDED:
        if not experiment.has(section):
            raise InputError(f"config: {section}: missing; add a config file that sets it")
    whole = complete(experiment)
    with registration(cpu):
        check(whole)
    check_output(experiment)
    experiment.data.ensure()
    check_files(experiment, whole)
    with own_stdout(), compat.enabled(cpu), adapted.folder_undone(whole):
        from openood.utils import launch

        if processes > 1 and cpu:
            port = import_module("openood.utils.launch")._find_free_port()
            torch.multiprocessing.spawn(work_on_cpu, (processes, port, whole, plugins.files()), nprocs=processes)
        else:
            launch(
                work,
                settings.num_gpus or 0,
                num_machines=settings.num_machines or 1,
                machine_rank=settings.machine_rank or 0,
                dist_url="auto",
                args=(whole, cpu, plugins.files()),
            )
    return settings.folder


def _processes(experiment: Experiment) -> int:
    """How many processes OpenOOD is to run in; none and one are both this one."""
    return (experiment.run.num_gpus or 0) * (experiment.run.num_machines or 1)


# ------------------------------------------------------------------------------------------------------- the config


def complete(experiment: Experiment) -> dict[str, Any]:
    """The config as plain dicts, with what OpenOOD's pipelines need and without what they stumble over."""
    whole = experiment.to_dict()
    whole.pop("benchmark", None)  # labels with dots in them are no keys of OpenOOD's Config
    dataset, ood = whole["dataset"], whole.get("ood_dataset") or {}
    for section, splits in ((dataset, SPLITS), (ood, OOD_SPLITS)):
        section.setdefault("split_names", [split for split in splits if isinstance(section.get(split), dict)])
        for key, least in (("num_gpus", 0), ("num_workers", 0), ("num_machines", 1)):
            section.setdefault(key, whole.get(key) or least)
    dataset.setdefault("interpolation", "bilinear")
    for split in filter(dataset.get, SPLITS):
        dataset[split] = {"dataset_class": DATASET, "shuffle": split in ("train", "oe"), **dataset[split]}
    ood.setdefault("name", f"{dataset.get('name')}_ood")
    ood.setdefault("num_classes", dataset.get("num_classes"))
    ood.setdefault("dataset_class", DATASET)
    ood.setdefault("shuffle", False)
    imagined = lookup(dataset, ("oe", "imglist_pth")) == IMAGINED
    if imagined and str(experiment.pipeline.name).startswith("test"):
        dataset["split_names"] = [split for split in dataset["split_names"] if split != "oe"]  # nothing to draw for
    label = factories.outlier_label(whole)
    if label is not None:
        whole["outlier_data"] = label
    adapted.complete_network(whole)
    return whole


def check(whole: dict[str, Any]) -> None:
    """Checks the names of a complete config, which OpenOOD would look for much later.

    Raises:
        InputError: nobody knows one of them, or it does not fit the others.
    """
    from openood.pipelines import get_pipeline
    from openood.utils import Config as HostConfig

    host = HostConfig(whole)
    pipeline = get_pipeline(host)  # which does nothing before it is run
    modules = ["openood.networks", "openood.trainers", "openood.postprocessors", "openood.datasets.utils"]
    bound = {
        key: value for name in [*modules, type(pipeline).__module__] for key, value in vars(sys.modules[name]).items()
    }
    factories.check_network(bound["get_network"], host["network"])
    preprocessor = lookup(whole, ("preprocessor", "name"))
    factories.check_known(bound["get_preprocessor"], "preprocessor.name", preprocessor, host, "train")
    if host.pipeline.name in ("train", "train_oe"):
        factories.check_trainer(bound["get_trainer"], host)
    if host.pipeline.name in ("test_ood", "test_ood_aps"):
        factories.check_postprocessor(bound["get_postprocessor"], host)


# -------------------------------------------------------------------------------------------------------- the files


def check_files(experiment: Experiment, whole: dict[str, Any]) -> None:
    """Checks image lists and the checkpoint, which OpenOOD would look for much later.

    Args:
        experiment: the config.
        whole: the complete config.

    Raises:
        InputError: one of them is not there, or a list is not in OpenOOD's form.
    """
    needed = {f"dataset.{split}.imglist_pth" for split in whole["dataset"]["split_names"]}
    if str(experiment.pipeline.name).startswith("test"):
        for split in (whole.get("ood_dataset") or {}).get("split_names", []):
            names = experiment.at(f"ood_dataset.{split}.datasets", [None])
            needed |= {f"ood_dataset.{'.'.join(filter(None, [split, name]))}.imglist_pth" for name in names}
    if experiment.network.pretrained:
        needed.add("network.checkpoint")
    for key in sorted(needed):
        path = experiment.at(key)
        if not isinstance(path, str) or path == IMAGINED:
            continue
        if not Path(path).is_file():
            raise experiment.error(key, f"no such file {path!r}; check the path")
        if key.endswith("imglist_pth"):
            check_imglist(path)


def check_imglist(path: str) -> None:
    """Raises InputError for a line that OpenOOD would not read, or that leads out of the data folder."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, label = line.partition(" ")
        check_inside(name, f"{path}:{number}")
        if not re.fullmatch(r"-?[0-9]+\s*|\{.*\}\s*", label):  # it takes a mapping of labels too
            remedy = "delete blank lines and give every image a label"
            ours = IMGLIST_LINE.fullmatch(line)
            if ours and " " in ours[1]:
                remedy = "OpenOOD splits a line at its first space, so rename images with spaces in their names"
            raise InputError(
                f"{path}:{number}: expected 'path label', got {line.strip()!r}; {remedy}, or use backend: standalone"
            )


def check_output(experiment: Experiment) -> None:
    """Raises InputError where OpenOOD would ask whether to write into a folder, and nobody can answer."""
    settings, out = experiment.run, experiment.run.folder
    if settings.save_output and settings.merge_option == "default" and out.is_dir():
        if _processes(experiment) > 1 or sys.stdin is None or not sys.stdin.isatty():
            raise InputError(f"{out}: exists already (output_dir); choose another mark, or --merge_option merge")


# --------------------------------------------------------------------------------------------------------- the work


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


def work(config: dict[str, Any], cpu: bool, files: Sequence[str] = ()) -> None:
    """One process's part of a run; the main one leaves the config as plain YAML in the run's folder.

    Args:
        config: the complete config.
        cpu: whether the CPU stands in for CUDA.
        files: plugins, which a process of its own has not loaded yet.
    """
    plugins.load(files)
    with registration(cpu):
        from openood.pipelines import get_pipeline
        from openood.utils import Config as HostConfig
        from openood.utils import comm

        host = HostConfig(config)
        pipeline = get_pipeline(host)
        module = sys.modules[type(pipeline).__module__]
        set_up = module.setup_logger

        def prepared(config: Any) -> None:
            set_up(config)  # which asks whether to write into a folder that exists
            if comm.is_main_process() and str(host.pipeline.name).startswith("test"):
                Path(host.output_dir, "ood.csv").unlink(missing_ok=True)  # OpenOOD would add its rows to the old ones

        with compat.replaced(module, setup_logger=prepared):
            pipeline.run()
        if comm.is_main_process() and host.save_output:
            write_text(Path(host.output_dir) / "config.yml", yaml.safe_dump(plain(host), sort_keys=False))


def work_on_cpu(rank: int, processes: int, port: int, config: dict[str, Any], files: Sequence[str]) -> None:
    """`work` in one of several processes on this machine's CPU, for which OpenOOD's launch has no place.

    Args:
        rank: the number of this process.
        processes: how many there are.
        port: where they meet.
        config: the complete config.
        files: plugins.
    """
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, world_size=processes, rank=rank)
    try:
        with compat.enabled(cpu=True):
            comm: Any = import_module("openood.utils.comm")
            comm._LOCAL_PROCESS_GROUP = torch.distributed.group.WORLD
        work(config, True, files)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def own_stdout() -> Iterator[None]:
    """Gives sys.stdout back after OpenOOD, whose log takes its place and would close it when it is collected."""
    stdout = sys.stdout
    try:
        yield
    finally:
        log: Any = sys.stdout
        sys.stdout = stdout
        while log is not stdout and hasattr(log, "console"):
            log.console, log = io.StringIO(), log.console


# -------------------------------------------------------------------------------------------------------- diagnosis


def status() -> dict[str, Any]:
    """What `doctor` says of OpenOOD: `found`, and where it is, `path`, `version`, `commit`, `works` and `missing`.

    `works` lists names by kind, OpenOOD 1.5's and ours, `missing` has a line for each absent extra that says what it
    disables. Where OpenOOD is there and cannot be used, `error` says why in place of `works`.
    """
    if not compat.installed("openood"):
        return {"found": False, "missing": {"openood": f"OpenOOD is not installed; {registry.INSTALL}"}}
    folder = Path(compat.folder("openood"))
    found: dict[str, Any] = {"found": True, "path": str(folder), **_version(folder)}
    try:
        with registration(cpu=False):
            found["works"] = {wing: factories.known(name) for name, (wing, _) in registry.FACTORIES.items()}
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
