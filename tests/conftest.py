"""Fixtures that many tests share. Those of a session are made once and must not be changed: what writes takes tmp_path."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # tests never reach for the network
os.environ["TQDM_DISABLE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers that share the cores must not wait for each other's threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import families  # noqa: E402
from helpers import Done, Tiny, without_warnings, write_tiny  # noqa: E402

from openood_dream import cli, plugins  # noqa: E402
from openood_dream.datasets.digits import make_digits  # noqa: E402
from openood_dream.datasets.imglist import read_imglist, write_imglist  # noqa: E402
from openood_dream.dream.chain import Dream  # noqa: E402
from openood_dream.dream.samplers import SAMPLERS  # noqa: E402
from openood_dream.dream.settings import SAMPLER_SETTINGS  # noqa: E402
from openood_dream.pipelines.benchmark import benchmark  # noqa: E402
from openood_dream.postprocessors.known import POSTPROCESSORS  # noqa: E402
from openood_dream.postprocessors.settings import ARGUMENTS  # noqa: E402
from openood_dream.trainers.known import TRAINERS  # noqa: E402
from openood_dream.trainers.settings import TRAINER_SETTINGS  # noqa: E402

# What trains networks or starts processes besides whatever uses a fixture of TRAINED; left out by `make test-fast`.
TRAINED = {"dream", "benchmarked"}
TRAINING = (
    "dream/generator/",
    "evaluators/test_evaluate.py",
    "evaluators/test_passes.py",
    "parallel/",
    "pipelines/",
    "test_bench.py",
    "test_extend.py",
    "test_faults.py",
    "trainers/test_loop.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what trains."""
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        if file.startswith(TRAINING) or TRAINED & set(getattr(item, "fixturenames", ())):
            item.add_marker("trains")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache folder while tests run."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def own_names() -> Iterator[None]:
    """What a test registers, and the plugins that it loads, are forgotten after it."""
    registries: tuple[dict, ...] = (
        *(TRAINERS, POSTPROCESSORS, SAMPLERS),
        *(TRAINER_SETTINGS, ARGUMENTS, SAMPLER_SETTINGS),
    )
    before, added = [dict(registry) for registry in registries], list(plugins._added)
    plugins.load_installed.cache_clear()
    yield
    for registry, old in zip(registries, before, strict=True):
        registry.clear()
        registry.update(old)
    plugins._added[:] = added
    plugins._files.clear()
    plugins.load_installed.cache_clear()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root of the digits benchmark."""
    root = tmp_path_factory.mktemp("digits")
    make_digits(root)
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Tiny:
    """The tiny digits benchmark, nothing of it made."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = read_imglist(digits / "benchmark_imglist" / "digits" / "train.txt")
    write_imglist(folder / "train.txt", rows[::2])
    return write_tiny(folder, root=folder / "out", data=digits, train=folder / "train.txt")


@pytest.fixture(scope="session")
def dream(tiny: Tiny) -> Dream:
    """The tiny chain, every stage of it made once."""
    found = tiny.config().imagination
    found.images  # noqa: B018  (makes everything before it)
    return found


@pytest.fixture(scope="session")
def names() -> list[str]:
    """The class names that the pipeline of random weights knows."""
    return ["cat", "aquarium fish", "dog"]


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> Path:
    """A saved Stable Diffusion 1 pipeline of random weights: 16x16 images, 4x4 latents."""
    return families.save(tmp_path_factory.mktemp("pipeline"), "sd1", names)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the openood-dream command in this process, so that torch is imported once for all tests."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["openood-dream", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Done(ended.value.code or 0, out, without_warnings(err))

    return run


@pytest.fixture(scope="session")
def benchmarked(tiny: Tiny, dream: Dream, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished benchmark of three methods, two seeds and three postprocessors, and the overrides that made it."""
    root = tmp_path_factory.mktemp("benchmark") / "out"
    overrides = ["--root", str(root), "--dream.cache_dir", str(tiny.root / "dream")]
    report = benchmark([tiny.file], overrides)
    return SimpleNamespace(root=root, report=report, overrides=overrides)
