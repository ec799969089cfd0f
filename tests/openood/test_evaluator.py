"""OpenOOD's unified Evaluator scores any network, and its runs stand in leaderboards."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.errors import InputError
from openood_dream.experiment import load_config
from openood_dream.networks.factory import get_network
from openood_dream.openood import compat, host, registry
from openood_dream.openood.evaluator import evaluate
from openood_dream.pipelines.test import test as standalone
from openood_dream.reports.runs import collect

pytestmark = [
    pytest.mark.openood,
    pytest.mark.skipif(not compat.installed("openood"), reason=f"OpenOOD is not installed; {registry.INSTALL}"),
]
GROUPS = {"nearood": ["cifar100", "tin"], "farood": ["mnist", "svhn", "texture", "places365"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory, digits):
    """A data root with OpenOOD's lists of CIFAR-10 by name, and images of digits."""
    root = tmp_path_factory.mktemp("root")
    (root / "images_classic").symlink_to(digits / "images_classic")
    source = digits / "benchmark_imglist" / "digits"
    rows = {
        name: read_imglist(source / f"{name}.txt")
        for name in ("train", "val", "test", "test_near_digits", "test_flower")
    }
    known = {name: [(image, i % 10) for i, (image, _) in enumerate(rows[name])] for name in ("train", "val", "test")}
    near, far = rows["test_near_digits"], rows["test_flower"]
    lists = {f"{split}_cifar10": some[:50] for split, some in known.items()}
    lists |= {"val_tin": near[:30], "test_cifar10c": known["val"][:20]}
    lists |= {f"test_{name}": near[30:80] for name in GROUPS["nearood"]}
    lists |= {f"test_{name}": far[:50] for name in GROUPS["farood"]}
    for name, some in lists.items():
        write_imglist(root / "benchmark_imglist" / "cifar10" / f"{name}.txt", some)
    return root


@pytest.fixture(scope="module")
def job(tiny, root, tmp_path_factory):
    """Builds a config that scores a network of random weights on these lists."""
    out = tmp_path_factory.mktemp("out")

    def split(name):
        return {"data_dir": f"{root}/images_classic", "imglist_pth": f"{root}/benchmark_imglist/cifar10/{name}.txt"}

    ood = {group: {"datasets": names} | {n: split(f"test_{n}") for n in names} for group, names in GROUPS.items()}
    dataset = {"name": "cifar10", "num_classes": 10} | {s: split(f"{s}_cifar10") for s in ("train", "val", "test")}
    layer = {"dataset": dataset, "ood_dataset": ood | {"val": split("val_tin")}}
    layer["ood_dataset"]["split_names"] = ["val", "nearood", "farood"]
    (out / "lists.yml").write_text(yaml.safe_dump(layer))
    checkpoint = out / "best.ckpt"
    shutil.copy(out / "lists.yml", out / "config.yml")
    (out / "config.yml").write_text("trainer: {name: base}\nseed: 0\noptimizer: {num_epochs: 1}\n")

    def build(name, *overrides, detector="postprocessors/msp"):
        keys = {"data_root": root, "root": out, "output_dir": out, "exp_name": name, "num_gpus": 0, "num_workers": 0}
        keys |= {"network.checkpoint": checkpoint}
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        files = [tiny.file, "pipelines/test/test_ood.yml", f"{detector}.yml", str(out / "lists.yml")]
        return load_config(files, [*words, *overrides])

    torch.manual_seed(0)
    experiment = build("net", "--network.pretrained", "false")
    torch.save(get_network(experiment.network, **experiment.dataset.shape).state_dict(), checkpoint)
    return build


def rows(folder, name="ood.csv"):
    with open(folder / name, newline="") as file:
        return {row["dataset"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("detector", ["msp", "react", "ash", "gen", "temperature_scaling"])
def test_as_standalone_but_for_the_accuracy(job, detector):
    words = ["--postprocessor.APS_mode", "false"]
    theirs = evaluate(job(f"{detector}/api", *words, detector=f"postprocessors/{detector}"))
    ours = standalone(job(f"{detector}/own", *words, "--backend", "standalone", detector=f"postprocessors/{detector}"))
    found, expected = rows(theirs), rows(ours)
    assert list(found) == list(expected)
    for name, row in found.items():
        for column in ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT"):
            assert float(row[column]) == pytest.approx(float(expected[name][column]), abs=0.0101), (name, column)
    for path in (theirs / "scores").iterdir():
        host, mine = np.load(path), np.load(ours / "scores" / path.name)
        np.testing.assert_array_equal(mine["label"], host["label"])
        np.testing.assert_allclose(mine["conf"], host["conf"], atol=1e-4, rtol=1e-4)


def test_accuracy_is_the_networks(job):
    """OpenOOD's pipelines count what ash predicts; its Evaluator what the network does."""
    keys = ["--postprocessor.APS_mode", "false"]
    plain, shaped = (evaluate(job(f"acc/{name}", *keys, detector=f"postprocessors/{name}")) for name in ("msp", "ash"))
    assert rows(shaped)["nearood"]["ACC"] == rows(plain)["nearood"]["ACC"]


def test_leaderboard_reads_it(job):
    run = collect([evaluate(job("read"))]).iloc[0]
    assert (run.method, run.postprocessor, run.dataset, run.network) == ("base", "msp", "cifar10", "timm:resnet10t")
    assert run.evaluator == "openood" and run.groups == {"near": GROUPS["nearood"], "far": GROUPS["farood"]}


def test_full_spectrum(job):
    folder = evaluate(job("full", "--evaluator.ood_scheme", "fsood"))
    assert set(rows(folder)) == set(rows(folder, "fsood.csv"))
    assert "near_fs_auroc" in collect([folder])


def test_hyperparameters_are_searched(job):
    config = job("search", "--postprocessor.APS_mode", "true", detector="postprocessors/react")
    assert "nearood" in rows(evaluate(config))


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--dataset.name", "birds"], "dataset.name"),
        (["--dataset.num_classes", "6"], "dataset.num_classes"),
        (["--data_root", "nowhere"], "data_root"),
        (["--postprocessor.name", "msq"], "postprocessor.name"),
        (["--network.checkpoint", "nowhere.ckpt"], "network.checkpoint"),
        (
            ["--dataset.name", "cifar100", "--dataset.num_classes", "100", "--evaluator.ood_scheme", "fsood"],
            "ood_scheme",
        ),
    ],
)
def test_bad_input_writes_nothing(job, words, key):
    config = job(f"bad/{key}", *words)
    with pytest.raises(InputError, match=key):
        evaluate(config)
    assert not config.run.folder.exists()


def test_image_that_is_missing(job, root, tmp_path):
    shutil.copytree(root / "benchmark_imglist", tmp_path / "benchmark_imglist")
    with pytest.raises(InputError, match="data_root: .*images_classic"):
        evaluate(job("lost", "--data_root", str(tmp_path)))


def test_command(job, command, tmp_path):
    config = job("command")
    (tmp_path / "all.yml").write_text(yaml.safe_dump(config.to_dict()))
    done = command("evaluate", "--config", tmp_path / "all.yml", "--evaluator", "openood")
    folder = Path(done.out.strip())
    assert done.code == 0 and (folder / "ood.csv").exists()
    again = command("evaluate", "--config", tmp_path / "all.yml", "--evaluator", "openood")
    assert again.code == 2 and str(folder) in again.err[-1]


# what OpenOOD's own files say of postprocessors that its evaluation_api alone has, searches cut to one value
THEIRS = {
    "iodin": "{APS_mode: false, postprocessor_args: {temperature: 1000, noise: 0.0014}, postprocessor_sweep: {}}",
    "cfood": "{APS_mode: false, postprocessor_args: {alpha: 1, k: 0.01, avg_topk: false}, postprocessor_sweep: {}}",
    "adascale_a": "{APS_mode: true, postprocessor_args: {num_samples: 50, percentile: [75, 85], k1: 20, k2: 10, lmbda: 10, "
    "o: 0.05}, postprocessor_sweep: {percentile_list: [[75, 85]], k1_list: [20], k2_list: [10], lmbda_list: [10], "
    "o_list: [0.05]}}",
}
THEIRS["adascale_l"] = THEIRS["adascale_a"]


def theirs(job, name, kind, tmp_path):
    """The config of one of THEIRS."""
    text = THEIRS[name].replace("{", f"postprocessor: {{name: {name}, ", 1)
    (tmp_path / f"{name}.yml").write_text(text)
    return job(f"{name}/{kind}", detector=tmp_path / name)


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_postprocessors_of_evaluation_api_alone(job, name, tmp_path):
    if name.startswith("adascale") and not compat.installed("statsmodels"):
        pytest.skip("statsmodels is not installed")
    assert 0 <= float(rows(evaluate(theirs(job, name, "api", tmp_path)))["nearood"]["AUROC"]) <= 100


@pytest.mark.parametrize("name", ["cfood", "iodin"])
def test_pipelines_have_them_too(job, name, tmp_path):
    folder = host.run(theirs(job, name, "pipeline", tmp_path))
    expected = rows(evaluate(theirs(job, name, "same", tmp_path)))
    for row, values in rows(folder).items():
        assert float(values["AUROC"]) == pytest.approx(float(expected[row]["AUROC"]), abs=0.0101)
