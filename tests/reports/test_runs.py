"""What is read from the folders of finished runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from finished_runs import HEADER, scores, without, write_csv, write_run, write_scores

from openood_dream.errors import InputError
from openood_dream.reports.runs import collect, read_scores
from openood_dream.store.files import write_json


def test_a_run_is_a_row(tmp_path):
    folder = write_run(tmp_path, "dream", 2, "msp", rows=scores(91.5, 96.25, 98.5))
    run = collect([tmp_path]).iloc[0].to_dict()
    expected = {"near_auroc": 91.5, "far_auroc": 96.25, "near_fpr95": 8.5, "far_fpr95": 3.75, "id_acc": 98.5}
    expected |= {"auroc_digits": 91.5, "auroc_flower": 96.25, "auroc_noise": 96.25, "path": str(folder.resolve())}
    expected |= {"method": "dream", "seed": 2, "postprocessor": "msp", "dataset": "digits", "epochs": 15}
    assert expected.items() <= run.items()


def test_last_row_of_a_set_counts(tmp_path):
    write_run(tmp_path, rows=[*scores(50, 50, 50), *scores(90, 95, 97)])
    run = collect([tmp_path]).iloc[0]
    assert (run.near_auroc, run.far_auroc, run.id_acc, run.auroc_noise) == (90, 95, 97, 95)


def test_folder_given_twice_counts_once(tmp_path):
    write_run(tmp_path)
    assert len(collect([tmp_path, tmp_path / "runs"])) == 1


def test_folder_without_runs(tmp_path):
    write_run(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "empty"))):
        collect([tmp_path / "full", tmp_path / "empty"])


@pytest.mark.parametrize(
    ("rows", "header", "named"),
    [
        (without("farood"), HEADER, "row farood"),
        (without("nearood"), HEADER, "row nearood"),
        ([], HEADER, "row nearood"),
        (scores(), ["dataset", "FPR@95", "AUC", "AUPR_IN", "AUPR_OUT", "ACC"], "column AUROC"),
        ([*without("flower"), ["flower", "1", "high", "1", "1", "97"]], HEADER, "row flower, column AUROC.*'high'"),
        ([*without("farood"), ["farood", "nan", "9", "1", "1", "97"]], HEADER, "row farood, column FPR@95.*'nan'"),
        ([*without("farood"), ["farood", "5.00", "9"]], HEADER, "row farood, column ACC.*None"),
        ([*without("noise"), ["noise", "5.00", "950.0", "1", "1", "97"]], HEADER, "row noise, column AUROC.*0 to 100"),
    ],
)
def test_malformed_csv(tmp_path, rows, header, named):
    folder = write_run(tmp_path, rows=rows, header=header)
    with pytest.raises(InputError, match=re.escape(str(folder / "ood.csv")) + ".*" + named):
        collect([tmp_path])


@pytest.mark.parametrize(
    "text", [None, "a: [1", "- 1", "method: x\nseed: one\n", "seed: 1\n", "!!python/name:os.open ''"]
)
def test_unusable_config(tmp_path, text):
    folder = write_run(tmp_path)
    (folder / "config.yml").unlink()
    if text is not None:
        (folder / "config.yml").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(folder / "config.yml"))) as error:
        collect([tmp_path])
    assert "\n" not in str(error.value)


def test_two_runs_that_claim_to_be_the_same(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    with pytest.raises(InputError) as error:
        collect([tmp_path])
    assert str(first) in str(error.value) and str(second) in str(error.value)


def test_outlier_data_stand_in_the_record(tmp_path):
    write_run(tmp_path, outlier_data="imagined (boundary)", dataset__oe={"imglist_pth": "train_tin597.txt"})
    assert collect([tmp_path]).outlier_data.tolist() == ["imagined (boundary)"]


def test_outlier_data_of_a_checkpoint_that_was_scored_elsewhere(tmp_path):
    trained = write_run(tmp_path / "trained", outlier_data="imagined (knn)").parent
    scored = write_run(tmp_path / "scored", network__checkpoint=str(trained / "best.ckpt"))
    (scored.parent / "train.json").unlink()
    assert collect([tmp_path / "scored"]).outlier_data.tolist() == ["imagined (knn)"]


@pytest.mark.parametrize(("keys", "expected"), [({}, "none"), ({"outlier_data": "imagined (knn)"}, "imagined (knn)")])
def test_outlier_data_of_openoods_runs_stand_in_their_config(tmp_path, keys, expected):
    folder = write_run(tmp_path)
    (folder.parent / "train.json").unlink()
    text = (folder / "config.yml").read_text()
    (folder / "config.yml").write_text(text + "".join(f"{key}: {value}\n" for key, value in keys.items()))
    assert collect([tmp_path]).outlier_data.tolist() == [expected]


def dumped(seed: int, name: str, value: str, rest: str) -> str:
    """A config as OpenOOD dumps it: objects of its Config class, not plain dicts."""
    return (
        "!!python/object/new:openood.utils.config.Config\nstate:\n  seed: 7\ndictitems:\n"
        f"  seed: {seed}\n  {name}: !!python/object/new:openood.utils.config.Config\n    state: {{}}\n"
        f"    dictitems:\n      name: {value}\n  more: &more [1]\n  same: *more\n{rest}"
    )


def test_openoods_test_run_knows_its_training_by_the_checkpoint(tmp_path):
    train, test = tmp_path / "cifar10_oe" / "s1", tmp_path / "test" / "s0" / "ood"
    for folder in (train, test):
        folder.mkdir(parents=True)
    rest = "  optimizer: {num_epochs: 100}\n  outlier_data: train_tin597\n"
    (train / "config.yml").write_text(dumped(1, "trainer", "oe", rest))
    rest = f"  network: {{name: resnet18_32x32, checkpoint: {train / 'best.ckpt'}}}\n  dataset: {{name: cifar10}}\n"
    (test / "config.yml").write_text(dumped(0, "postprocessor", "msp", rest))
    write_csv(test / "ood.csv", scores())
    run = collect([test]).iloc[0]
    found = (run.method, run.seed, run.epochs, run.outlier_data, run.postprocessor, run.dataset)
    assert found == ("oe", 1, 100, "train_tin597", "msp", "cifar10")


def test_scores_of_a_network_that_was_trained_again(tmp_path):
    folder = write_run(tmp_path)
    write_json(folder / "evaluate.json", {"hash": "e", "inputs": {"run": "base-0"}})
    run = collect([tmp_path]).iloc[0]
    assert (run.run, run.evaluation) == ("base-0", "e")
    write_json(folder.parent / "train.json", {"hash": "another", "outlier_data": "none"})
    with pytest.raises(InputError, match=f"{re.escape(str(folder))}.*trained again"):
        collect([tmp_path])


def write_spectrum(folder: Path, near: float, shifted: float) -> None:
    write_csv(folder / "fsood.csv", scores(near))
    write_csv(folder / "csid.csv", [[name, "-", "-", "-", "-", f"{shifted:.2f}"] for name in ("turned", "csid")])


def test_full_spectrum_beside_a_run(tmp_path):
    write_spectrum(write_run(tmp_path), 70.5, 61.25)
    run = collect([tmp_path]).iloc[0]
    assert (run.near_fs_auroc, run.csid_acc, run.acc_turned) == (70.5, 61.25, 61.25)


def test_openoods_full_spectrum_runs_are_joined(tmp_path):
    write_run(tmp_path / "ood", rows=scores(90))
    write_run(tmp_path / "fsood", rows=scores(70), evaluator={"ood_scheme": "fsood"})
    (run,) = collect([tmp_path]).itertuples()
    assert (run.near_auroc, run.near_fs_auroc) == (90, 70)
    with pytest.raises(InputError, match="full-spectrum run alone"):
        collect([tmp_path / "fsood"])


def test_scores_are_read_as_they_are(tmp_path):
    folder = write_run(tmp_path)
    write_scores(folder, 1.0)
    pred, conf, label = read_scores(folder / "scores" / "six.npz")
    assert pred.shape == conf.shape == label.shape == (200,) and set(label) == {-1} and np.isfinite(conf).all()


def test_damaged_scores(tmp_path):
    (tmp_path / "six.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"six\.npz"):
        read_scores(tmp_path / "six.npz")


def test_outlier_data_of_openoods_own_training(tmp_path):
    """OpenOOD leaves no record, and its test runs name a checkpoint beside which the config of the training lies."""
    training = tmp_path / "trained" / "config.yml"
    training.parent.mkdir()
    training.write_text(
        "trainer: {name: oe}\nseed: 0\npipeline: {name: train_oe}\n"
        "dataset: {oe: {imglist_pth: ./data/benchmark_imglist/cifar10/train_tin597.txt}}\n"
    )
    folder = write_run(tmp_path / "scored", "oe", network__checkpoint=str(training.with_name("best.ckpt")))
    config = yaml.safe_load((folder / "config.yml").read_text())
    (folder / "config.yml").write_text(
        yaml.safe_dump({k: v for k, v in config.items() if k not in ("method", "trainer")})
    )
    (folder.parent / "train.json").unlink()
    run = collect([tmp_path / "scored"]).iloc[0]
    assert (run.method, run.outlier_data) == ("oe", "train_tin597")
