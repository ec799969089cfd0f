"""What OpenOOD's eval_ood.py --save-csv wrote stands in the table beside other runs."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from finished_runs import write_run

from openood_dream.errors import InputError
from openood_dream.reports.runs import collect, summaries
from openood_dream.reports.table import table

NAME = "cifar10_resnet18_32x32_base_e100_lr0.1_default"
ROWS = ["cifar100", "tin", "nearood", "mnist", "farood"]


def write(root, seeds=3, folder="ood", postprocessor="msp", near=88.0, name=NAME, config=None):
    """A folder as eval_ood.py leaves it; the near-OOD AUROC of seed s is `near` + s. Returns the file."""
    for seed in range(seeds):
        (root / name / f"s{seed}").mkdir(parents=True, exist_ok=True)
        if config:
            (root / name / f"s{seed}" / "config.yml").write_text(yaml.safe_dump(config))
    values = np.array([[20, near + seed, 80, 70, 95.0] for seed in range(seeds)])
    cells = [[f"{m:.2f} \u00b1 {s:.2f}" for m, s in zip(values.mean(0), values.std(0))]] * len(ROWS)
    (root / name / folder).mkdir(exist_ok=True)
    path = root / name / folder / f"{postprocessor}.csv"
    pd.DataFrame(cells, index=ROWS, columns=["FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]).to_csv(path)
    return path


def made(*folders):
    return table(collect(folders), summaries=summaries(folders))


def test_a_file_is_a_row(tmp_path):
    write(tmp_path)
    row = made(tmp_path).iloc[0]
    found = tuple(row[["method", "postprocessor", "network", "seeds", "near_auroc", "id_acc", "outlier_data"]])
    assert found == ("base", "msp", "resnet18_32x32", 3, 89.0, 95.0, "none")
    assert row["near_auroc_std"] == pytest.approx(1, abs=0.01)  # of the sample, as for other runs


def test_one_seed_has_no_deviation(tmp_path):
    write(tmp_path, 1)
    assert math.isnan(made(tmp_path)["near_auroc_std"][0])


def test_beside_runs_of_our_own(tmp_path):
    write(tmp_path / "theirs")
    names = {"cifar100": 85.0, "tin": 85.0, "nearood": 85.0, "mnist": 90.0, "farood": 90.0}
    rows = [[name, "20.00", str(auroc), "80.00", "70.00", "95.00"] for name, auroc in names.items()]
    keys = {"dataset__name": "cifar10", "optimizer__num_epochs": 100}
    write_run(tmp_path / "ours", "dream_ood", 0, "msp", rows=rows, **keys)
    found = made(tmp_path / "theirs", tmp_path / "ours")
    assert list(found["method"]) == ["base", "dream_ood"] and list(found["seeds"]) == [3, 1]


def test_must_agree_with_other_runs(tmp_path):
    write(tmp_path / "theirs")
    write_run(tmp_path / "ours")
    with pytest.raises(InputError, match="differ in dataset"):
        made(tmp_path)
    assert len(table(collect([tmp_path]), True, summaries=summaries([tmp_path]))) == 2


def test_full_spectrum_is_joined(tmp_path):
    write(tmp_path)
    write(tmp_path, folder="fsood", near=60.0)
    row = made(tmp_path).iloc[0]
    assert (row["near_auroc"], row["near_fs_auroc"], row["id_acc"]) == (89.0, 61.0, 95.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar100_oe_resnet18_32x32_oe_e100_lr0.1_lam0.5_default", ("cifar100", "resnet18_32x32", "oe")),
        ("cifar10_conf_branch_net_conf_branch_e100_lr0.1_default", ("cifar10", "conf_branch_net", "conf_branch")),
        ("cifar10_oe_udg_udg_e100_lr0.1_default", ("cifar10", "udg", "udg")),
        ("imagenet200_resnet18_224x224_base_e90_lr0.1_default", ("imagenet200", "resnet18_224x224", "base")),
        ("cifar100_csi_net_csi_step2_e100_lr0.1", ("cifar100", "csi_net", "csi_step2")),
        ("cifar10_timm:resnet18_dream_ood_e100_lr0.1_default", ("cifar10", "timm:resnet18", "dream_ood")),
    ],
)
def test_openood_names_its_folders(tmp_path, name, expected):
    write(tmp_path, name=name)
    row = summaries([tmp_path])[0]
    assert (row["dataset"], row["network"], row["method"]) == expected
    assert (row["outlier_data"] == "none") == ("_oe_" not in name)


def test_training_says_what_it_was(tmp_path):
    config = {"dataset": {"name": "cifar10_oe", "oe": {"imglist_pth": "lists/train_tin597.txt"}}}
    config |= {"network": {"name": "resnet50"}, "trainer": {"name": "oe"}, "pipeline": {"name": "train_oe"}}
    write(tmp_path, name="mine", config=config)
    row = summaries([tmp_path])[0]
    found = row["dataset"], row["network"], row["method"], row["outlier_data"]
    assert found == ("cifar10", "resnet50", "oe", "train_tin597")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("ACC", "Accuracy", "columns"),
        ("95.00 \u00b1 0.00", "95.00", "row cifar100, column ACC"),
        ("nearood", "near", "row nearood"),
        ("20.00 \u00b1", "120.00 \u00b1", "column FPR@95"),
    ],
)
def test_malformed(tmp_path, old, new, says):
    path = write(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=f"{re.escape(str(path))}.*{says}"):
        made(tmp_path)


def test_folder_of_any_name(tmp_path):
    write(tmp_path, name="mine")
    with pytest.raises(InputError, match="mine.*config.yml"):
        made(tmp_path)


def test_full_spectrum_alone(tmp_path):
    path = write(tmp_path, folder="fsood")
    with pytest.raises(InputError, match=re.escape(str(path))):
        made(tmp_path)


def test_command(tmp_path, command):
    write(tmp_path)
    done = command("leaderboard", tmp_path, "--format", "json")
    assert done.code == 0 and '"near_auroc": 89.0' in done.out
    for words in (["--submission", tmp_path / "entry"], ["--format", "html", "--out", tmp_path / "a.html"]):
        refused = command("leaderboard", tmp_path, *words)
        assert refused.code == 2 and words[0] in refused.err[-1]
