"""What OpenOOD's leaderboard calls things, which lists it is about, and what makes an entry doubtful."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from openood_dream.config.tree import lookup
from openood_dream.datasets.imglist import read_imglist
from openood_dream.errors import InputError
from openood_dream.postprocessors.base import Postprocessor
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.reports.records import CONFIG, read_config

SEEDS = 3  # that an entry averages over
TRAININGS = {
    "base": "CrossEntropy",
    "oe": "OE",
    "vos": "VOS",
    "npos": "NPOS",
    "dream_ood": "DREAM-OOD",
    "dream_id": "DREAM-ID",
    "oal": "OAL",
    "frl": "FRL",
    "arpl": "ARPL",
    "augmix": "AugMix",
    "cider": "CIDER",
    "conf_branch": "ConfBranch",
    "csi": "CSI",
    "godin": "G-ODIN",
    "logitnorm": "LogitNorm",
    "mcd": "MCD",
    "mixoe": "MixOE",
    "mixup": "Mixup",
    "mos": "MOS",
    "palm": "PALM",
    "regmixup": "RegMixup",
    "rotpred": "RotPred",
    "t2fnorm": "T2FNorm",
    "udg": "UDG",
}
DETECTORS = {
    "adascale_a": "AdaSCALE-A",
    "adascale_l": "AdaSCALE-L",
    "ash": "ASH",
    "cfood": "CFOOD",
    "cider": "CIDER",
    "conf_branch": "ConfBranch",
    "dice": "DICE",
    "dropout": "Dropout",
    "ebo": "EBO",
    "fdbd": "fDBD",
    "gen": "GEN",
    "godin": "G-ODIN",
    "gradnorm": "GradNorm",
    "gram": "Gram",
    "iodin": "iODIN",
    "klm": "KLM",
    "knn": "KNN",
    "mds": "MDS",
    "mds_ensemble": "MDSEns",
    "mls": "MLS",
    "msp": "MSP",
    "nci": "NCI",
    "nnguide": "NNGuide",
    "npos": "NPOS",
    "odin": "ODIN",
    "openmax": "OpenMax",
    "rankfeat": "RankFeat",
    "react": "ReAct",
    "relation": "Relation",
    "residual": "Residual",
    "reweightood": "ReweightOOD",
    "rmds": "RMDS",
    "rotpred": "RotPred",
    "scale": "SCALE",
    "she": "SHE",
    "ssd": "SSD",
    "t2fnorm": "T2FNorm",
    "temperature_scaling": "TempScale",
    "vim": "VIM",
    "vra": "VRA",
}
# whose files in OpenOOD say APS_mode: True and list values to search
SEARCHED = frozenset(
    "adascale_a adascale_l ash ebo fdbd gen gram iodin knn mds_ensemble nci odin react relation scale vim vra".split()
)
# SHA-256, in part, of the sorted lines `path label` of OpenOOD's lists, by the group that they are in
LISTS: dict[str, dict[str, dict[str, str]]] = {
    "cifar10": {
        "test": {"cifar10": "2022987e126e7ae9"},
        "nearood": {"cifar100": "410d386c4b271d23", "tin": "1cde9f18bc6554a7"},
        "farood": {
            "mnist": "c1673c42c9e03ff0",
            "svhn": "aae9f05111975adc",
            "texture": "96aeac122d8f3007",
            "places365": "1c6f46a2cdd3fc10",
        },
    },
    "cifar100": {
        "test": {"cifar100": "5c6934d66001faad"},
        "nearood": {"cifar10": "352dd98e85f29609", "tin": "83b7c5f21389b145"},
        "farood": {
            "mnist": "c1673c42c9e03ff0",
            "svhn": "aae9f05111975adc",
            "texture": "96aeac122d8f3007",
            "places365": "239a14a9c917decc",
        },
    },
}


def list_hash(path: str | Path) -> str:
    """The first digits of the SHA-256 of an image list's lines, whatever their order.

    Args:
        path: the list.

    Raises:
        InputError: it cannot be read.
    """
    lines = sorted(f"{name} {label}\n" for name, label in read_imglist(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def doubts(runs: pd.DataFrame) -> list[str]:
    """What keeps runs from being an entry of OpenOOD's leaderboard, a sentence each.

    Args:
        runs: rows of runs.collect that one row of a table is made of.
    """
    found = dict[str, None]()
    name = f"{runs['method'].iloc[0]} with {runs['postprocessor'].iloc[0]}"
    seeds = runs["seed"].nunique()
    if seeds < SEEDS:
        found[f"{name}: {seeds} of {SEEDS} seeds; an entry averages over {SEEDS}, so train and score the others"] = None
    for path in runs["path"]:
        config = read_config(Path(path) / CONFIG)
        if runs["postprocessor"].iloc[0] in SEARCHED and lookup(config, ("postprocessor", "APS_mode")) is not True:
            found[
                f"{name}: scored without a search of its hyperparameters, which OpenOOD's file asks for; score it with "
                "--postprocessor.APS_mode true"
            ] = None
        found |= dict.fromkeys(_list_doubts(config, str(runs["dataset"].iloc[0])))
    return list(found)


def _list_doubts(config: Mapping[str, Any], dataset: str) -> Iterable[str]:
    """What is doubtful about the test lists in a run's config, whose ID data have the name `dataset`."""
    if dataset not in LISTS:
        yield f"{dataset}: its lists cannot be compared with OpenOOD's, of which {' and '.join(LISTS)} are known here"
        return
    sections = {"test": {dataset: lookup(config, ("dataset", "test"))}}
    for group in ("nearood", "farood"):
        section = lookup(config, ("ood_dataset", group)) or {}
        sections[group] = {str(name): section.get(name) for name in section.get("datasets") or ()}
    for group, lists in sections.items():
        missing = {code: name for name, code in LISTS[dataset][group].items()}
        for name, split in lists.items():
            path = (split or {}).get("imglist_pth")
            try:
                if not isinstance(path, str):
                    raise InputError("the run's config does not name its file")
                code = list_hash(path)
            except InputError as error:
                yield f"{group} {name}: cannot be compared with OpenOOD's list ({error})"
                missing = {code: other for code, other in missing.items() if other != name}
                continue
            if code not in LISTS[dataset][group].values():
                yield f"{path}: none of OpenOOD's lists of {dataset} by its content ({group} {name}); use OpenOOD's"
            missing.pop(code, None)
        if missing:
            yield f"{dataset}: OpenOOD's {group} has {', '.join(missing.values())} too; score on all of its sets"


def network_predicts(postprocessor: str) -> bool:
    """Whether the classes that a detector predicts are known to be the network's own.

    Args:
        postprocessor: its name.
    """
    cls = POSTPROCESSORS.get(postprocessor)
    return cls is not None and cls.prediction is Postprocessor.prediction


def network_accuracy(mine: pd.DataFrame, runs: pd.DataFrame) -> pd.Series | None:
    """The accuracy of the networks themselves, which OpenOOD's Evaluator reports whatever the detector predicts.

    Args:
        mine: the rows of `runs` that one row of a table is made of.
        runs: all rows of runs.collect, among them those of the same networks with other detectors.

    Returns:
        One accuracy in percent for each row of `mine`; None where some network's is not among `runs`.
    """
    if all(_by_evaluator(row) for _, row in mine.iterrows()):
        return mine["id_acc"]
    keys = [key for key in ("method", "seed", "network", "dataset", "training", "checkpoint") if key in runs]
    plain = runs[[_by_evaluator(row) for _, row in runs.iterrows()]]
    found = []
    for _, row in mine.iterrows():
        same = (plain[keys].fillna("") == row[keys].fillna("")).all(axis=1)
        if not same.any():
            return None
        found.append(plain.loc[same, "id_acc"].iloc[0])
    return pd.Series(found, index=mine.index)


def _by_evaluator(run: pd.Series) -> bool:
    """Whether a run's accuracy is its network's own: by its detector, or as OpenOOD's Evaluator scored it."""
    return network_predicts(run["postprocessor"]) or run.get("evaluator") == "openood"
