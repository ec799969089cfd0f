"""Every version of OpenOOD 1.5: what it lacks disables only what needs it.

OPENOOD_VERSIONS is a folder with a checkout of OpenOOD in each of its subfolders, such as v1.5, 34eb2db and 3c35632.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hosts import ARGS, scores

import openood_dream
from openood_dream.openood.cache import SERVED
from openood_dream.pipelines import test as scoring
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.run import hosted

FOLDER = os.environ.get("OPENOOD_VERSIONS")
VERSIONS = sorted(path.name for path in Path(FOLDER).iterdir() if (path / "openood").is_dir()) if FOLDER else []
pytestmark = [
    pytest.mark.openood,
    pytest.mark.skipif(not VERSIONS, reason="OPENOOD_VERSIONS names no folder with checkouts of OpenOOD"),
]
# what later versions brought: postprocessor -> the file that has it
YOUNGER = {name: f"{name}_postprocessor.py" for name in ("gen", "nnguide", "relation", "scale", "fdbd", "nci", "vra")}
NAMES = sorted(name for name in SERVED if name in POSTPROCESSORS and name not in ("nnguide", "residual"))

# runs configs, given as pairs of files and overrides, and prints what became of each
CHILD = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from openood_dream.errors import InputError
from openood_dream.experiment import load_config
from openood_dream.openood import compat, host
from openood_dream.openood.registry import FACTORIES

def bound():
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("openood", "faiss")}
    return {(name, key): id(value) for name, module in modules.items() for key, value in vars(module).items()
            if key in FACTORIES or name == "faiss"}

done, before = {}, None
for name, (files, words) in json.load(sys.stdin).items():
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            done[name] = str(host.run(load_config(files, words)))
    except InputError as error:
        done[name] = f"refused: {error}"
    except Exception as error:
        done[name] = f"{type(error).__name__}: {error}"
    before = before or bound()
assert {key: value for key, value in bound().items() if key in before} == before
print(json.dumps(done))
"""


def results(version: str, jobs: dict[str, list]) -> dict[str, str]:
    """What becomes of jobs, pairs of config files and overrides, in a version of OpenOOD; none may end in a traceback."""
    root = Path(openood_dream.__file__).parent.parent
    path = os.pathsep.join([str(Path(FOLDER) / version), str(root)])
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def standalone(job, trained) -> dict[str, dict]:
    """Our scores, by postprocessor."""
    return {name: scores(hosted(scored(job, name, trained, "standalone"), scoring.test)) for name in NAMES}


def scored(job, name: str, trained: Path, backend: str):
    layers = ["pipelines/test/test_ood.yml", f"postprocessors/{name}.yml"]
    keys = ["--network.checkpoint", str(trained), "--postprocessor.APS_mode", "false", *ARGS.get(name, [])]
    return job(f"versions/{name}/{backend}", layers, *keys, backend=backend)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_postprocessor_scores(version, job, standalone, trained, tiny, tmp_path):
    config = scored(job, "msp", trained, "openood")
    words = ["--backend", "openood", "--num_gpus", "0", "--num_workers", "0", "--merge_option", "merge"]
    words += ["--data_root", str(config.at("data_root")), "--network.checkpoint", str(trained), "--output_dir"]
    files = [tiny.file, "pipelines/test/test_ood.yml"]
    off = ["--postprocessor.APS_mode", "false"]
    jobs = {
        name: [
            [*files, f"postprocessors/{name}.yml"],
            [*words, str(tmp_path), "--exp_name", name, *off, *ARGS.get(name, [])],
        ]
        for name in NAMES
    }
    package, found = Path(FOLDER) / version / "openood", results(version, jobs)
    for name in NAMES:
        if name in YOUNGER and not (package / "postprocessors" / YOUNGER[name]).exists():
            assert found[name].startswith(f"refused: postprocessor.name: OpenOOD has no {name!r} here"), found[name]
            continue
        theirs = scores(Path(found[name]))
        for row, values in standalone[name].items():
            # AUROC and ID accuracy; until 2024 other numbers had other definitions
            np.testing.assert_allclose(theirs[row][1], values[1], atol=0.0101, err_msg=f"{name}: {row}")
            np.testing.assert_allclose(theirs[row][-1], values[-1], atol=0.0101, err_msg=f"{name}: {row}")


@pytest.mark.parametrize("version", VERSIONS)
def test_trainers_train(version, job, tiny, tmp_path):
    words = ["--backend", "openood", "--num_gpus", "0", "--num_workers", "0", "--optimizer.num_epochs", "1"]
    words += [
        "--data_root",
        str(job("any", []).at("data_root")),
        "--root",
        str(tmp_path),
        "--output_dir",
        str(tmp_path),
    ]
    words += ["--dataset.train.batch_size", "16"]
    layers = {
        "base": ["pipelines/train/base.yml"],
        "oe": ["pipelines/train/oe.yml", "datasets/digits/digits_oe.yml"],
        "dream_ood": ["pipelines/train/dream_ood.yml", "preprocessors/dream.yml"],
        "vos": ["pipelines/train/vos.yml"],
        "npos": ["pipelines/train/npos.yml"],
    }
    more = {"npos": ["--trainer.trainer_args.start_epoch_KNN", "0", "--trainer.trainer_args.sample_number", "32"]}
    more["npos"] += ["--trainer.trainer_args.K", "3", "--trainer.trainer_args.select", "4"]
    jobs = {
        name: [[tiny.file, *files], [*words, "--exp_name", name, *more.get(name, [])]] for name, files in layers.items()
    }
    found = results(version, jobs)
    for name in layers:
        assert (Path(found[name]) / "best.ckpt").is_file(), f"{name}: {found[name]}"
