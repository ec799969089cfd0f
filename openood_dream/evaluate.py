"""One forward pass per data set, many detectors, OpenOOD's metrics and files."""

from __future__ import annotations

import copy
import csv
import io
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sklearn.metrics import auc, precision_recall_curve, roc_curve
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from openood_dream import data, store
from openood_dream.config import Config, InputError
from openood_dream.networks import autocast, pick_device
from openood_dream.postprocessors import Pass, Postprocessor, find_postprocessor

METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")


@torch.inference_mode()
def forward_pass(net: nn.Module, loader: DataLoader, device: torch.device) -> Pass:
    """Logits and features of every image of a loader, in eval mode and float32."""
    net.to(device).eval()
    logits, features, labels = [], [], []
    for batch in tqdm(loader, desc="evaluate", unit="batch", leave=False, delay=2):
        out, feature = net(batch["data"].to(device), return_feature=True)
        logits.append(out.float().cpu())
        features.append(feature.float().cpu())
        labels.append(batch["label"])
    return Pass(torch.cat(logits), torch.cat(features), torch.cat(labels))


@torch.inference_mode()
def accuracy(net: nn.Module, loader: DataLoader, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """The share of a loader's images whose label the network predicts."""
    net.eval()
    hits = 0
    for batch in loader:
        with autocast(device, dtype):
            guesses = net(batch["data"].to(device)).argmax(1).cpu()
        hits += (guesses == batch["label"]).sum().item()
    return hits / len(loader.dataset)


# ---------------------------------------------------------------------------------------------------------- metrics


def compute_metrics(conf: np.ndarray, label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """FPR@95, AUROC, AUPR_IN, AUPR_OUT and ACC as fractions, as OpenOOD v1.5 computes them.

    `conf` (N,) is larger for ID, `label` (N,) is -1 for OOD. FPR@95 is the share of ID samples taken for OOD at the
    first threshold that finds 95 % of the OOD samples; the AUPRs are areas by trapezoids.
    """
    ood = (label == -1).astype(int)
    fpr, tpr, _ = roc_curve(ood, -conf)
    precision_in, recall_in, _ = precision_recall_curve(1 - ood, conf)
    precision_out, recall_out, _ = precision_recall_curve(ood, -conf)
    known = ood == 0
    hits = np.mean(pred[known] == label[known])
    return np.array(
        [fpr[np.argmax(tpr >= 0.95)], auc(fpr, tpr), auc(recall_in, precision_in), auc(recall_out, precision_out), hits]
    )


# ------------------------------------------------------------------------------------------------------- evaluation


class Passes:
    """The passes of one network over a config's data sets, each made once, when first asked for."""

    def __init__(self, net: nn.Module, config: Config) -> None:
        self.net, self.config, self.device = net, config, pick_device(config.device)
        self._made: dict[str, Pass] = {}

    def _once(self, key: str, loader: Callable[[], DataLoader]) -> Pass:
        if key not in self._made:
            self._made[key] = forward_pass(self.net, loader(), self.device)
        return self._made[key]

    def id(self, split: str) -> Pass:
        """The pass over `dataset.<split>`, without augmentation."""
        return self._once(f"id/{split}", lambda: data.id_loader(self.config, split))

    def head(self) -> nn.Linear:
        """The network's classifier, a copy on the CPU."""
        return copy.deepcopy(self.net.get_fc_layer()).cpu().float().requires_grad_(False)

    def ood_val(self) -> Pass:
        return self._once("val", lambda: data.ood_val_loader(self.config))

    def ood(self) -> Iterable[tuple[str, str, Pass]]:
        """(group, name, pass) of every OOD test set."""
        for group, name, loader in data.ood_loaders(self.config):
            yield group, name, self._once(f"{group}/{name}", lambda loader=loader: loader)


def evaluate(passes: Passes, config: Config, out: Path) -> np.ndarray:
    """Scores a network with `postprocessor`, writes `config.yml`, `scores/<set>.npz` and, last, `ood.csv` under `out`.

    With `postprocessor.APS_mode` the hyperparameters are those of `postprocessor_sweep` with the best AUROC on the
    validation sets. Returns the near-OOD means (METRICS, as fractions). Scores that are not numbers raise InputError.
    """
    cls, section = find_postprocessor(config), config.postprocessor
    detector = fitted(cls, section.postprocessor_args or {}, passes)
    if section.APS_mode and section.postprocessor_sweep:
        detector = best_on_validation(cls, section, passes)

    def scored(of: Pass, name: str, known: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pred, conf, label = verdicts(detector, of, section.name, name)
        label = label if known else np.full_like(label, -1)
        path = out / "scores" / f"{name}.npz"
        with store.replacing(path) as work:
            np.savez(work, pred=pred, conf=conf, label=label)
        return pred, conf, label

    known, unknown = passes.id("test"), list(passes.ood())  # a broken image is found before anything is written
    store.writable(out)
    store.write_text(out / "config.yml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    id_scores = scored(known, config.dataset.name, known=True)
    rows: list[tuple[str, np.ndarray]] = []
    groups: dict[str, list[np.ndarray]] = {"nearood": [], "farood": []}
    for group, name, of in unknown:
        pred, conf, label = (np.concatenate(pair) for pair in zip(id_scores, scored(of, name, known=False)))
        rows.append((name, compute_metrics(conf, label, pred)))
        groups[group].append(rows[-1][1])
        if len(groups[group]) == len(config.ood_dataset[group].datasets):
            rows.append((group, np.mean(groups[group], axis=0)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", *METRICS])
    writer.writerows([name, *(f"{100 * value:.2f}" for value in values)] for name, values in rows)
    store.write_text(out / "ood.csv", text.getvalue())
    return dict(rows)["nearood"]


def fitted(cls: type[Postprocessor], args: dict[str, Any], passes: Passes) -> Postprocessor:
    detector = cls(args)
    detector.fit(passes.id, passes.head())
    return detector


def verdicts(
    detector: Postprocessor, of: Pass, postprocessor: str, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, confidences and labels (N,) of a data set; InputError where a confidence is not a number."""
    conf = detector.confidence(of).double().numpy()
    if np.isnan(conf).any():
        row = int(np.flatnonzero(np.isnan(conf))[0])
        raise InputError(f"{postprocessor}: the score of image {row} of {name} is not a number; check the checkpoint")
    return detector.prediction(of).numpy(), conf, of.labels.numpy()


def best_on_validation(cls: type[Postprocessor], section: Config, passes: Passes) -> Postprocessor:
    """The detector with the hyperparameters of the best AUROC on ID validation against OOD validation images.

    Of equally good ones it is the last in OpenOOD's order, in which the first argument varies fastest.
    """
    sweep = section.postprocessor_sweep
    lists = []
    for name in cls.sweep:
        values = sweep.get(f"{name}_list")
        if not isinstance(values, list) or not values:
            raise InputError(
                f"postprocessor.postprocessor_sweep.{name}_list: expected a list of values, got {values!r}"
            )
        lists.append(values)
    best, best_auroc = None, -1.0
    for values in itertools.product(*reversed(lists)):
        args = {**(section.postprocessor_args or {}), **dict(zip(reversed(cls.sweep), values))}
        detector = fitted(cls, args, passes)
        sides = [verdicts(detector, of, section.name, "val") for of in (passes.id("val"), passes.ood_val())]
        pred, conf, label = (np.concatenate(pair) for pair in zip(*sides))
        auroc = compute_metrics(conf, label, pred)[1]
        if auroc >= best_auroc:
            best, best_auroc = detector, auroc
    return best
