"""Every shipped config parses and validates, alone and in the combinations that the documentation shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from openood_dream.config.files import shipped_configs
from openood_dream.datasets.settings import IMAGINED
from openood_dream.dream.imaginer import SCHEDULERS
from openood_dream.experiment import Experiment, load_config
from openood_dream.networks.timm_network import backbone_name
from openood_dream.pipelines.benchmark import variants
from openood_dream.pipelines.train import check_training
from openood_dream.postprocessors.known import POSTPROCESSORS, find_postprocessor
from openood_dream.trainers.known import TRAINERS

ROOT = shipped_configs()
# published.yml is a table, anew.yml a part that others include
FILES = sorted(
    {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yml")} - {"published.yml", "networks/anew.yml"}
)
DATASETS = sorted(path.parent.name for path in ROOT.glob("datasets/*/*_ood.yml"))
BENCHMARKS = [file for file in FILES if Path(file).parts[:-1] in (("benchmarks",), ("benchmarks", "ablations"))]
CLASSES = {"cifar10": 10, "cifar100": 100, "cifar10_5k": 10, "tin100": 100, "digits": 6}
CLASSES |= {"imagenet100": 100, "imagenet200": 200, "imagenet": 1000}
# what a file may refer to without setting it itself
COMMON = ["pipelines/train/base.yml", "datasets/digits/digits.yml", "networks/digits_cnn.yml", "postprocessors/msp.yml"]


def of(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.yml"))


def merged(dataset: str, *files: str) -> Experiment:
    return load_config([f"datasets/{dataset}/{dataset}.yml", "networks/timm_resnet18.yml", *files])


def detector(experiment: Experiment) -> type:
    return find_postprocessor(experiment.postprocessor, experiment.network.name)


def test_data_sets_are_complete():
    assert set(DATASETS) == set(CLASSES)


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("benchmarks/methods/")])
def test_file_validates(file):
    load_config([*COMMON, file])


@pytest.mark.parametrize("common", BENCHMARKS)
def test_benchmark_validates(common):
    plan = load_config([common]).benchmark
    for method, _, keys in variants(plan, list(plan.methods)):
        files = [common, *plan.methods[method]]
        experiment = load_config(files, keys)
        check_training(experiment)
        for name in experiment.benchmark.postprocessors:
            detector(load_config([*files, f"postprocessors/{name}.yml"], keys))


@pytest.mark.parametrize("trainer", ["base", "dream_ood", "dream_id"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_four_files_from_imagination_to_checkpoint(dataset, trainer):
    experiment = merged(dataset, f"pipelines/train/{trainer}.yml", "preprocessors/dream.yml")
    cls = check_training(experiment)
    assert experiment.pipeline.name == ("train_oe" if cls.auxiliary else "train")
    assert experiment.dataset.num_classes == experiment.network.num_classes == CLASSES[dataset]
    assert len({name.lower() for name in experiment.imagination.names}) == CLASSES[dataset]
    dream, oe = experiment.dream, experiment.dataset.split("oe")
    assert backbone_name(dream.space.network, "") and dream.synthesis.scheduler in SCHEDULERS
    assert dream.outliers.method == "inlier" if trainer == "dream_id" else dream.outliers.method != "inlier"
    assert oe.imglist_pth == IMAGINED and "oe" in experiment.at("dataset.split_names")
    assert oe.batch_size == experiment.dataset.split("train").batch_size


@pytest.mark.parametrize("dataset", DATASETS)
def test_data_set_can_be_scored(dataset):
    files = [f"datasets/{dataset}/{dataset}_ood.yml", "pipelines/test/test_ood.yml", "postprocessors/knn.yml"]
    experiment = merged(dataset, *files)
    detector(experiment)
    data = experiment.data
    splits = [("dataset", "train"), ("dataset", "val"), ("dataset", "test"), ("ood_dataset", "val")]
    assert {group for group, _ in data.ood_sets()} == {"nearood", "farood"}
    splits += [("ood_dataset", *which) for which in data.ood_sets()]
    for which in splits:
        split = data.split(*which)
        assert split.imglist_pth.startswith("./data/benchmark_imglist/")
        assert split.data_dir.startswith("./data/images_")
    assert experiment.at("ood_dataset.num_classes") == CLASSES[dataset]


@pytest.mark.parametrize("dataset", [name for name in DATASETS if (ROOT / f"datasets/{name}/{name}_oe.yml").exists()])
def test_outlier_exposure_has_its_lists(dataset):
    experiment = merged(dataset, "pipelines/train/oe.yml", f"datasets/{dataset}/{dataset}_oe.yml")
    assert check_training(experiment).auxiliary and experiment.dataset.split("oe").imglist_pth.endswith(".txt")


@pytest.mark.parametrize("name", sorted(POSTPROCESSORS))
def test_postprocessor_has_a_file(name):
    network = ["networks/vae_small.yml"] if POSTPROCESSORS[name].generative else []
    experiment = load_config([*COMMON[:-1], *network, f"postprocessors/{name}.yml"])
    cls, section = detector(experiment), experiment.postprocessor
    assert cls is POSTPROCESSORS[name]
    assert set(cls.sweep) <= set(section.postprocessor_args or {})
    for key in cls.sweep:  # odin's keys have no ending in OpenOOD's file
        assert {key, f"{key}_list"} & set(section.postprocessor_sweep)


def test_trainer_has_a_file():
    names = {merged("digits", f"pipelines/train/{stem}.yml").trainer.name for stem in of("pipelines/train")}
    assert names == set(TRAINERS)


def test_papers_numbers():
    cifar, imagenet = (merged(name, "pipelines/train/base.yml").dream for name in ("cifar100", "imagenet100"))
    assert (cifar.outliers.k, cifar.outliers.sigma, cifar.outliers.select, cifar.outliers.keep) == (300, 0.07, 50, 2)
    assert (imagenet.outliers.k, imagenet.outliers.sigma, imagenet.outliers.select) == (300, 0.03, 200)
    assert (imagenet.space.epochs, imagenet.space.batch_size, imagenet.space.per_class) == (100, 160, 1000)
    assert cifar.generator == imagenet.generator == "CompVis/stable-diffusion-v1-4"
    experiment = merged("imagenet100", "pipelines/train/dream_ood_imagenet.yml", "preprocessors/dream.yml")
    sizes = [experiment.dataset.split(name).batch_size for name in ("train", "oe")]
    assert (experiment.trainer.beta, sizes) == (1.0, [160, 160])


def test_files_given_before_a_later_include(tmp_path):
    mine = tmp_path / "mine.yml"
    mine.write_text("include: [pipelines/train/base.yml]\noptimizer: {num_epochs: 3}\nnum_workers: 1\n")
    experiment = merged("digits", str(mine), "pipelines/train/dream_ood.yml", "preprocessors/dream.yml")
    assert (experiment.optimizer.num_epochs, experiment.at("num_workers"), experiment.trainer.name) == (
        3,
        1,
        "dream_ood",
    )
    assert experiment.where("optimizer.num_epochs") == f"{mine}: optimizer.num_epochs"


def test_class_name_files_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert merged("cifar100", "pipelines/train/base.yml").imagination.names[:2] == ["apple", "aquarium fish"]
    for name in ("imagenet100", "imagenet200"):
        wnids = (ROOT / f"classnames/{name}_wnids.txt").read_text().split()
        assert wnids == sorted(set(wnids)) and len(wnids) == CLASSES[name]
    mine = Path("classnames/cifar10.txt")
    mine.parent.mkdir()
    mine.write_text("\n".join(f"my {i}" for i in range(10)))
    assert merged("cifar10", "pipelines/train/base.yml").imagination.names[0] == "my 0"


@pytest.mark.parametrize(
    "name, differ, some",
    [
        ("cifar100", 22, {"maple tree": "maple", "keyboard": "computer keyboard", "apple": "apples"}),
        ("imagenet100", 7, {"killer whale": "orca", "aircraft carrier": "carrier", "hog": "pig"}),
    ],
)
def test_class_names_of_dream_ood(name, differ, some):
    """In the order of ours, and of both lists each name once."""
    ours, theirs = (
        merged(name, "pipelines/train/base.yml", *files).imagination.names
        for files in ((), (f"synthesis/{name}_dream_ood.yml",))
    )
    assert len(theirs) == len(set(theirs)) == CLASSES[name]
    pairs = {one: other for one, other in zip(ours, theirs, strict=True) if one != other}
    assert len(pairs) == differ and some.items() <= pairs.items()
