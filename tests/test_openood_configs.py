"""Every shipped config parses and validates, alone and in the combinations that the documentation shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from openood_dream import data, pipelines
from openood_dream.config import TRAINER_SETTINGS, Config, load_config, origin, settings, shipped_configs
from openood_dream.imagine import SCHEDULERS
from openood_dream.networks import backbone_name
from openood_dream.postprocessors import POSTPROCESSORS, find_postprocessor
from openood_dream.trainers import get_trainer

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


def merged(dataset: str, *files: str) -> Config:
    return load_config([f"datasets/{dataset}/{dataset}.yml", "networks/timm_resnet18.yml", *files])


def test_the_data_sets_are_complete():
    assert set(DATASETS) == set(CLASSES)


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("benchmarks/methods/")])
def test_every_file_parses_and_validates(file):
    config = load_config([*COMMON, file])
    for section in ("dream", "trainer", "benchmark"):
        if config.get(section):
            settings(config, section)


@pytest.mark.parametrize("common", BENCHMARKS)
def test_every_method_of_a_benchmark_validates_with_every_postprocessor(common):
    plan = settings(load_config([common]), "benchmark")
    for method, _, keys in pipelines.variants(plan, list(plan.methods)):
        files = [common, *plan.methods[method]]
        for name in settings(load_config(files, keys), "benchmark").postprocessors:
            config = load_config([*files, f"postprocessors/{name}.yml"], keys)
            settings(config, "dream")
            assert get_trainer(config) and find_postprocessor(config)


@pytest.mark.parametrize("trainer", ["base", "dream_ood", "dream_id"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_four_files_describe_everything_from_imagination_to_checkpoint(dataset, trainer):
    config = merged(dataset, f"pipelines/train/{trainer}.yml", "preprocessors/dream.yml")
    cls = get_trainer(config)
    assert config.pipeline.name == ("train_oe" if cls.auxiliary else "train")
    assert config.dataset.num_classes == config.network.num_classes == CLASSES[dataset]
    assert len({name.lower() for name in data.class_names(config)}) == CLASSES[dataset]
    dream = settings(config, "dream")
    assert backbone_name(dream.space.network, "") and dream.synthesis.scheduler in SCHEDULERS
    assert dream.outliers.method == "inlier" if trainer == "dream_id" else dream.outliers.method != "inlier"
    assert config.dataset.oe.imglist_pth == data.IMAGINED and "oe" in config.dataset.split_names
    assert config.dataset.oe.batch_size == config.dataset.train.batch_size


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_can_be_scored_and_names_lists_of_the_data_folder(dataset):
    config = merged(
        dataset, f"datasets/{dataset}/{dataset}_ood.yml", "pipelines/test/test_ood.yml", "postprocessors/knn.yml"
    )
    find_postprocessor(config)
    splits = [config.dataset[split] for split in ("train", "val", "test")] + [config.ood_dataset.val]
    for group in ("nearood", "farood"):
        assert config.ood_dataset[group].datasets
        splits += [config.ood_dataset[group][name] for name in config.ood_dataset[group].datasets]
    for section in splits:
        assert section.imglist_pth.startswith("./data/benchmark_imglist/") and section.data_dir.startswith(
            "./data/images_"
        )
    assert config.ood_dataset.num_classes == CLASSES[dataset]


@pytest.mark.parametrize("dataset", [name for name in DATASETS if (ROOT / f"datasets/{name}/{name}_oe.yml").exists()])
def test_outlier_exposure_has_its_lists(dataset):
    config = merged(dataset, "pipelines/train/oe.yml", f"datasets/{dataset}/{dataset}_oe.yml")
    assert get_trainer(config).auxiliary and config.dataset.oe.imglist_pth.endswith(".txt")


@pytest.mark.parametrize("name", sorted(POSTPROCESSORS))
def test_every_postprocessor_has_a_file_with_the_arguments_that_it_sweeps(name):
    network = ["networks/vae_small.yml"] if POSTPROCESSORS[name].generative else []
    config = load_config([*COMMON[:-1], *network, f"postprocessors/{name}.yml"])
    cls = find_postprocessor(config)
    assert cls is POSTPROCESSORS[name]
    assert set(cls.sweep) <= set(config.postprocessor.postprocessor_args)
    if cls.sweep:
        assert {f"{key}_list" for key in cls.sweep} == set(config.postprocessor.postprocessor_sweep)


def test_every_trainer_has_a_file():
    names = {merged("digits", f"pipelines/train/{stem}.yml").trainer.name for stem in of("pipelines/train")}
    assert names == set(TRAINER_SETTINGS)


def test_the_papers_numbers():
    cifar, imagenet = (
        settings(merged(name, "pipelines/train/base.yml"), "dream") for name in ("cifar100", "imagenet100")
    )
    assert (cifar.outliers.k, cifar.outliers.sigma, cifar.outliers.select, cifar.outliers.keep) == (300, 0.07, 50, 2)
    assert (imagenet.outliers.k, imagenet.outliers.sigma, imagenet.outliers.select) == (300, 0.03, 200)
    assert (imagenet.space.epochs, imagenet.space.batch_size, imagenet.space.per_class) == (100, 160, 1000)
    assert cifar.generator == imagenet.generator == "CompVis/stable-diffusion-v1-4"
    config = merged("imagenet100", "pipelines/train/dream_ood_imagenet.yml", "preprocessors/dream.yml")
    assert (config.trainer.beta, config.dataset.train.batch_size, config.dataset.oe.batch_size) == (1.0, 160, 160)


def test_files_given_before_keep_what_a_later_include_would_set(tmp_path):
    mine = tmp_path / "mine.yml"
    mine.write_text("include: [pipelines/train/base.yml]\noptimizer: {num_epochs: 3}\nnum_workers: 1\n")
    config = merged("digits", str(mine), "pipelines/train/dream_ood.yml", "preprocessors/dream.yml")
    assert (config.optimizer.num_epochs, config.num_workers, config.trainer.name) == (3, 1, "dream_ood")
    assert origin(config, "optimizer.num_epochs") == str(mine)


def test_class_name_files_are_found_from_any_folder_and_wnids_lie_in_label_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data.class_names(merged("cifar100", "pipelines/train/base.yml"))[:2] == ["apple", "aquarium fish"]
    for name in ("imagenet100", "imagenet200"):
        wnids = (ROOT / f"classnames/{name}_wnids.txt").read_text().split()
        assert wnids == sorted(set(wnids)) and len(wnids) == CLASSES[name]
    mine = Path("classnames/cifar10.txt")
    mine.parent.mkdir()
    mine.write_text("\n".join(f"my {i}" for i in range(10)))
    assert data.class_names(merged("cifar10", "pipelines/train/base.yml"))[0] == "my 0"
