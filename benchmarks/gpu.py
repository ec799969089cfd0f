"""What `make gpu` does: tests, trainings and drawing on a CUDA GPU, step by step, and the table of docs/gpu.md.

Each step takes less than 8 minutes, leaves a file of JSON under results/gpu/, and is not done again where that is there.
Nothing is downloaded. The fast recipe needs CIFAR-10 below ./data, in OpenOOD's layout; without it that step is left out.

    python benchmarks/gpu.py [--out FOLDER] [--only STEP ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 480  # seconds of a step
CIFAR = Path("data/benchmark_imglist/cifar10/train_cifar10.txt")
RECIPE = ["datasets/cifar10/cifar10.yml", "pipelines/train/base.yml", "pipelines/train/fast.yml"]
SEEDS = 2
DOCUMENT = Path(__file__).parent.parent / "docs" / "gpu.md"
HEAD, TAIL = "<!-- table: make gpu -->\n", "<!-- end -->\n"


def words(*command: str) -> None:
    """Runs a command of Python's within LIMIT; an error ends everything, what is finished stays."""
    subprocess.run([sys.executable, *command], check=True, timeout=LIMIT)


def suite(name: str, *selected: str) -> Callable[[Path], list[dict[str, Any]]]:
    """The step that runs a suite of benchmarks; its rows are what pytest-benchmark found."""

    def step(folder: Path) -> list[dict[str, Any]]:
        found = folder / f"{name}.benchmark.json"
        words("-m", "pytest", f"benchmarks/bench_{name}.py", "-q", f"--benchmark-json={found}", *selected)
        marks = json.loads(found.read_text(encoding="utf-8"))["benchmarks"]
        return [{"name": mark["name"], "seconds": mark["stats"]["min"], **mark["extra_info"]} for mark in marks]

    return step


def tests(folder: Path) -> list[dict[str, Any]]:
    """The tests marked `cuda`; one row, with how many passed."""
    report = folder / "tests.xml"
    words("-m", "pytest", "tests/test_cuda.py", "-q", f"--junitxml={report}")
    count = report.read_text(encoding="utf-8").count("<testcase ")
    return [{"name": "tests marked cuda", "passed": count}]


def recipe(folder: Path) -> list[dict[str, Any]]:
    """The fast recipe on CIFAR-10's 50,000 images, one row for each seed."""
    import torch

    from openood_dream.experiment import load_config
    from openood_dream.networks.checkpoints import load_weights
    from openood_dream.networks.factory import get_network
    from openood_dream.networks.features import accuracy

    rows = []
    for seed in range(SEEDS):
        out = folder / f"fast-s{seed}"
        given = ["--seed", str(seed), "--output_dir", str(out), "--exp_name", "run", "--backend", "standalone"]
        words("-m", "openood_dream", "train", "--config", *RECIPE, *given, "--device", "cuda")
        record = json.loads((out / "run" / "train.json").read_text(encoding="utf-8"))
        experiment = load_config(RECIPE, given)
        net = get_network(experiment.network, **experiment.dataset.shape)
        load_weights(net, out / "run" / "best.ckpt")
        share = accuracy(net, experiment.data.loader("dataset", "test"), torch.device("cuda"))
        name = f"fast recipe, CIFAR-10, seed {seed}"
        rows.append({"name": name, "seconds": record["seconds"], "accuracy_percent": 100 * share})
    return rows


STEPS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "tests": tests,
    "recipe": recipe,
    "training": suite("gpu"),
    "drawing": suite("imagine", "-k", "stable_diffusion"),
}


def machine() -> str:
    """The GPU and what computes on it, in words."""
    import torch

    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}"


def table(found: list[dict[str, Any]]) -> str:
    """Rows of steps as Markdown."""
    lines = ["| what | seconds | besides |", "| --- | ---: | --- |"]
    for row in found:
        rest = {key: value for key, value in row.items() if key not in ("name", "seconds")}
        texts = [
            f"{key.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
            for key, value in rest.items()
        ]
        seconds = f"{row['seconds']:.3g}" if "seconds" in row else ""
        lines.append(f"| {row['name'].replace('_', ' ')} | {seconds} | {', '.join(texts)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the steps that are not done yet, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of what is finished")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="steps to do")
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("gpu: no CUDA GPU is to be seen here; the table of docs/gpu.md stays as it is")
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        done = given.out / f"{name}.json"
        if done.exists():
            print(f"{name}: there already ({done})")
        elif name == "recipe" and not CIFAR.is_file():
            print(f"{name}: left out, there is no {CIFAR}")
        else:
            start = time.perf_counter()
            rows = STEPS[name](given.out)
            work = done.with_suffix(".part")
            work.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8")
            work.rename(done)
            print(f"{name}: {time.perf_counter() - start:.0f} s")
    parts = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (given.out / f"{name}.json" for name in STEPS)
        if path.exists()
    ]
    text = f"{machine()}\n\n" + table([row for part in parts for row in part["rows"]])
    print(text)
    page = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(
        page[: page.index(HEAD) + len(HEAD)] + "\n" + text + "\n" + page[page.index(TAIL) :], encoding="utf-8"
    )


if __name__ == "__main__":
    main()
