"""Every detector of classifiers gives OpenOOD's scores, image by image, however wide the features are."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

from openood_dream.config.files import shipped_configs
from openood_dream.errors import InputError
from openood_dream.evaluators.metrics import compute_metrics
from openood_dream.openood import compat, registry
from openood_dream.postprocessors.base import Images, Pass
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.postprocessors.settings import PostprocessorSettings

pytestmark = [
    pytest.mark.openood,
    pytest.mark.skipif(not compat.installed("openood"), reason=f"OpenOOD is not installed; {registry.INSTALL}"),
]
DETECTORS = sorted(name for name, cls in POSTPROCESSORS.items() if not cls.generative)
CLASSES, SIDE = 10, 6
WRAPPERS = {"react": ("react_net", "ReactNet"), "ash": ("ash_net", "ASHNet"), "scale": ("scale_net", "ScaleNet")}
API_NAMES = {"temperature_scaling": "temp_scaling"}


class Net(nn.Module):
    """A linear layer, ReLU and a classifier, in OpenOOD's protocol."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(3 * SIDE * SIDE, width), nn.Linear(width, CLASSES)
        self.feature_size = width

    def forward(self, x, return_feature=False, return_feature_list=False):
        features = self.body(x.flatten(1)).relu()
        logits = self.fc(features)
        if return_feature_list:
            return logits, [features]
        return (logits, features) if return_feature else logits

    def get_fc(self):
        return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()

    def get_fc_layer(self):
        return self.fc


class Rows(list):
    """Images in OpenOOD's form, whose labels are at hand too."""

    @property
    def labels(self) -> torch.Tensor:
        return torch.tensor([row["label"] for row in self])


@pytest.fixture(scope="module", params=[64, 128, 512])
def world(request):
    """A network of some width that was fitted to clustered images, and loaders of them."""
    with torch.random.fork_rng():
        torch.manual_seed(request.param)
        net, centres = Net(request.param).eval(), torch.randn(CLASSES, 3, SIDE, SIDE)

        def loader(count: int, noise: float, label: int | None = None) -> DataLoader:
            labels = [i % CLASSES for i in range(count)]
            rows = [{"data": centres[i] + noise * torch.randn(3, SIDE, SIDE), "label": i} for i in labels]
            return DataLoader(Rows(row if label is None else row | {"label": label} for row in rows), batch_size=50)

        loaders = {"train": loader(700, 1.0), "val": loader(100, 1.0), "test": loader(100, 1.0)}
        loaders["ood"] = loader(100, 2.0, -1)
        images = torch.stack([row["data"] for row in loaders["train"].dataset])
        step = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(30):
            step.zero_grad()
            nn.functional.cross_entropy(net(images), loaders["train"].dataset.labels).backward()
            step.step()
    return net.requires_grad_(False), loaders


def settings(name: str, width: int) -> dict:
    """What the shipped file says of a detector, in numbers that fit."""
    section = yaml.safe_load((shipped_configs() / f"postprocessors/{name}.yml").read_text())["postprocessor"]
    args = dict(section.get("postprocessor_args") or {})
    args |= {"vim": {"dim": width // 2}, "residual": {"dim": width // 2}, "nnguide": {"K": 10, "alpha": 1.0}}.get(
        name, {}
    )
    return section | {"postprocessor_args": args, "APS_mode": False}


def theirs(name: str, net: Net, loaders: dict, section: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """OpenOOD's predictions and confidences of the test and the OOD images."""
    config = import_module("openood.utils").Config(
        {"postprocessor": section, "dataset": {"name": "cifar10"}, "num_gpus": 0, "network": {"name": "toy"}}
    )
    table = import_module("openood.evaluation_api.postprocessor").postprocessors
    api = API_NAMES.get(name, name)
    if api not in table:
        pytest.skip(f"this OpenOOD has no {name}")
    try:
        post = table[api](config)
        if name in WRAPPERS:
            module, wrapper = WRAPPERS[name]
            net = getattr(import_module(f"openood.networks.{module}"), wrapper)(net)
        post.setup(net, {key: loaders[key] for key in ("train", "val", "test")}, {"val": loaders["ood"]})
        found = {key: post.inference(net, loaders[key], progress=False) for key in ("test", "ood")}
    except InputError as error:
        pytest.skip(str(error))  # an extra that OpenOOD needs for it
    return {key: (np.asarray(pred), np.asarray(conf)) for key, (pred, conf, _) in found.items()}


def ours(name: str, net: Net, loaders: dict, section: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same of ours."""
    cls = POSTPROCESSORS[name]
    keys = {key: section[key] for key in ("name", "postprocessor_args", "postprocessor_sweep") if key in section}
    detector = cls(cls.arguments(PostprocessorSettings(**keys)))

    def split(key: str):
        loader = loaders[key]
        if cls.runs_network:
            return Images(net, loader, torch.device("cpu"), "cifar10")
        # batch by batch, as OpenOOD runs it: sums over other shapes differ in their last bits
        parts = [net(batch["data"], return_feature=True) for batch in loader]
        logits, features = (torch.cat(part) for part in zip(*parts))
        return Pass(logits, features, loader.dataset.labels, loader.batch_size)

    detector.fit(split, net.fc)
    sets = {key: split(key) for key in ("test", "ood")}
    return {key: (detector.prediction(one).numpy(), detector.confidence(one).numpy()) for key, one in sets.items()}


def cells(found: dict, labels: np.ndarray) -> np.ndarray:
    """The numbers of a row of ood.csv, in percent."""
    pred, conf = (np.concatenate([found[key][i] for key in ("test", "ood")]) for i in (0, 1))
    return 100 * np.asarray(compute_metrics(conf, np.concatenate([labels, np.full(100, -1)]), pred))


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_and_cells_are_openoods(name, world):
    net, loaders = world
    section = settings(name, net.feature_size)
    with compat.enabled(cpu=True):
        expected = theirs(name, net, loaders, section)
    found = ours(name, net, loaders, section)
    for key in ("test", "ood"):
        np.testing.assert_array_equal(found[key][0], expected[key][0])
        scale = np.abs(expected[key][1]).max()
        np.testing.assert_allclose(found[key][1], expected[key][1], rtol=1e-3, atol=1e-5 * scale)
    labels = loaders["test"].dataset.labels.numpy()
    np.testing.assert_allclose(cells(found, labels), cells(expected, labels), atol=0.0101)
