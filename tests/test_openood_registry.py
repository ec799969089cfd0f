"""What registration does to OpenOOD's factories, on a stand-in of OpenOOD's shape that needs no OpenOOD."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor

import openood_dream
from openood_dream.config import Config, InputError
from openood_dream.networks import TimmNetwork
from openood_dream.openood import registry
from openood_dream.trainers import TRAINERS, processes

# the modules that define factories and those that import them by name, as in OpenOOD 1.5
FILES = {
    "__init__.py": "",
    "trainers/__init__.py": "from .utils import get_trainer",
    "trainers/utils.py": """
        def get_trainer(net, train_loader, val_loader, config):
            return {'base': 'their base', 'oe': 'their oe', 'mixup': 'their mixup'}[config.trainer.name]
    """,
    "preprocessors/__init__.py": """
        from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor
        from .utils import get_preprocessor
        class BasePreprocessor:
            def __init__(self, config):
                self.transform = Compose([RandomHorizontalFlip(), ToTensor()])
        class TestStandardPreProcessor(BasePreprocessor):
            def __init__(self, config):
                self.transform = Compose([ToTensor()])
    """,
    "preprocessors/utils.py": """
        def get_preprocessor(config, split):
            import openood.preprocessors as here
            table = {'base': here.BasePreprocessor, 'cutout': here.BasePreprocessor}
            train = split == 'train'
            return table[config.preprocessor.name](config) if train else here.TestStandardPreProcessor(config)
    """,
    "networks/__init__.py": "from .utils import get_network",
    "networks/utils.py": """
        def get_network(network_config):
            if network_config.name == 'lenet':
                return 'their lenet'
            elif network_config.name == 'around':
                return 'around', get_network(network_config.backbone)
    """,
    "postprocessors/__init__.py": "from .utils import get_postprocessor",
    "postprocessors/utils.py": "def get_postprocessor(config):\n    return {'msp': 1}[config.postprocessor.name]",
    "evaluators/__init__.py": "from .utils import get_evaluator",
    "evaluators/utils.py": "def get_evaluator(config):\n    return {'base': 1}[config.evaluator.name]",
    "datasets/__init__.py": "from openood.preprocessors.utils import get_preprocessor",
    "pipelines/__init__.py": """
        from .utils import get_pipeline
        from openood.evaluators import get_evaluator
        from openood.networks import get_network
        from openood.trainers import get_trainer
    """,
    "pipelines/utils.py": "def get_pipeline(config):\n    return {'train': 1, 'test_ood': 3}[config.pipeline.name]",
    "utils/__init__.py": "",
    "utils/logger.py": "",
}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A package that has OpenOOD's shape, in front of the real one; nothing is registered before and after."""
    for name, text in FILES.items():
        path = tmp_path / "openood" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    openood_dream.unregister()
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "openood"}
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path / "openood"
    openood_dream.unregister()
    for name in [name for name in sys.modules if name.partition(".")[0] == "openood"]:
        del sys.modules[name]
    sys.modules.update(kept)


def bound() -> dict[str, object]:
    """Every name that is bound to a factory, in any module of the host."""
    factories = {factory.partition(".")[2] for factory in registry.FACTORIES}
    return {
        f"{name}.{attribute}": value
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "openood"
        for attribute, value in vars(module).items()
        if attribute in factories
    }


def a_config(**sections) -> Config:
    return Config({"pipeline": {"name": "train"}, "preprocessor": {"name": "base"}, **sections})


# ------------------------------------------------------------------------------------------------------ registration


def test_registering_replaces_every_bound_name_once_and_unregistering_restores_each(host):
    for module in ("datasets", "pipelines", "postprocessors"):
        importlib.import_module(f"openood.{module}")
    before = bound()
    openood_dream.register()
    first = bound()
    changed = {name for name in before if first[name] is not before[name]}
    assert changed == set(before) and len(changed) >= 11
    openood_dream.register()
    assert bound() == first
    openood_dream.unregister()
    assert bound() == before


def test_a_users_own_module_gets_the_new_factories_too(host, monkeypatch):
    script = ModuleType("users_main")
    script.get_trainer = original = importlib.import_module("openood.trainers").get_trainer
    monkeypatch.setitem(sys.modules, "users_main", script)
    openood_dream.register()
    assert script.get_trainer is sys.modules["openood.trainers"].get_trainer is not original
    openood_dream.unregister()
    assert script.get_trainer is original


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "trainers/utils.py",
            "def get_trainer(net, loader, config): ...",
            "get_trainer(net, loader, config); expected",
        ),
        ("trainers/utils.py", "get_trainer = None", "has no function get_trainer"),
        ("pipelines/utils.py", "def get_pipeline(): ...", "get_pipeline(); expected get_pipeline(config)"),
        ("networks/utils.py", "import a_module_that_is_not_there", "cannot be imported"),
    ],
)
def test_another_shape_of_openood_is_refused_and_nothing_is_changed(host, file, text, says):
    (host / file).write_text(text)
    with pytest.raises(InputError, match="OpenOOD") as caught:
        openood_dream.register()
    assert says in str(caught.value)
    assert not registry.registered()


def test_without_openood_registering_says_how_to_get_it(monkeypatch):
    openood_dream.unregister()
    monkeypatch.setattr(registry.compat, "installed", lambda name: False)
    with pytest.raises(InputError, match="not installed; pip install --no-deps git"):
        openood_dream.register()


def test_known_names_are_read_from_openood(host):
    assert registry.known("trainers.get_trainer") == ["base", "mixup", "oe"]
    assert registry.known("networks.get_network") == ["around", "lenet"]
    assert registry.known("preprocessors.get_preprocessor") == ["base", "cutout"]


# ---------------------------------------------------------------------------------------------------------- trainers


@pytest.fixture
def get_trainer(host):
    openood_dream.register()
    return importlib.import_module("openood.pipelines").get_trainer


OPTIMIZER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "num_epochs": 1}


def test_openoods_own_trainers_stay_openoods(get_trainer):
    config = a_config(trainer={"name": "oe", "lambda_oe": 0.5})
    assert get_trainer(None, None, None, config) == "their oe"


def test_ours_train_in_the_place_of_openoods_where_the_config_says_so(get_trainer):
    section = {"name": "oe", "lambda_oe": 0.5, "implementation": "ours"}
    config = a_config(trainer=section, dataset={"oe": {}}, pipeline={"name": "train_oe"})
    config.optimizer = {"num_epochs": 1, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    assert type(get_trainer(nn.Linear(2, 2), [[1], [2]], None, config)) is TRAINERS["oe"]


def test_ours_get_the_loaders_that_openood_has_for_them(get_trainer):
    train, outliers = DataLoader([1, 2]), DataLoader([3])
    config = a_config(
        trainer={"name": "dream_ood", "beta": 2.0},
        optimizer=OPTIMIZER,
        dataset={"oe": {}},
        pipeline={"name": "train_oe"},
    )
    trainer = get_trainer(nn.Linear(2, 2), [train, outliers], None, config)
    assert type(trainer) is TRAINERS["dream_ood"] and trainer.settings.beta == 2.0
    assert trainer.train_loader is train and trainer.outlier_loader is outliers


def test_an_unknown_trainer_lists_those_of_both(get_trainer):
    with pytest.raises(InputError) as caught:
        get_trainer(None, None, None, a_config(trainer={"name": "dream_odd"}))
    message = str(caught.value)
    assert "'dream_odd'; did you mean 'dream_ood'?" in message and "\n" not in message
    assert all(name in message for name in ("base", "dream_id", "mixup", "oe"))


def test_a_trainer_of_ours_in_the_wrong_pipeline_is_named_with_the_right_one(get_trainer):
    with pytest.raises(InputError, match="the trainer dream_ood needs 'train_oe', got 'train'"):
        get_trainer(None, None, None, a_config(trainer={"name": "dream_ood"}))


def test_a_mistaken_setting_of_our_trainer_is_named(get_trainer):
    config = a_config(trainer={"name": "dream_ood", "betta": 1}, dataset={"oe": {}}, pipeline={"name": "train_oe"})
    with pytest.raises(InputError, match="trainer.betta: unknown key; did you mean 'beta'?"):
        get_trainer(None, None, None, config)


# ------------------------------------------------------------------------------------------------------ preprocessor


@pytest.fixture
def get_preprocessor(host):
    openood_dream.register()
    return importlib.import_module("openood.datasets").get_preprocessor


@pytest.fixture
def drawn(monkeypatch):
    """Counts how often images would be drawn."""
    calls = []
    monkeypatch.setattr(registry, "_imagine", lambda config: calls.append(1) or ("/images/imglist.txt", "/images"))
    return calls


def imagining(**sections) -> Config:
    oe = {"imglist_pth": "imagined", "data_dir": "imagined"}
    dataset = {"name": "d", "split_names": ["train", "oe", "val"], "oe": oe}
    dream = {"class_names": ["a", "b"], "generator": "some/model", "outliers": {"method": "boundary"}}
    return a_config(preprocessor={"name": "dream"}, dataset=dataset, dream=dream, **sections)


def kinds(preprocessor) -> list[type]:
    assert isinstance(preprocessor.transform, Compose)
    return [type(step) for step in preprocessor.transform.transforms]


def test_the_preprocessor_dream_draws_once_and_names_the_images(get_preprocessor, drawn):
    config = imagining()
    for split in ("train", "oe", "val", "test"):
        get_preprocessor(config, split)
    assert drawn == [1]
    assert (config.dataset.oe.imglist_pth, config.dataset.oe.data_dir) == ("/images/imglist.txt", "/images")
    assert config.outlier_data == "imagined (boundary)"


def test_training_and_auxiliary_images_are_augmented_and_others_are_not(get_preprocessor, drawn):
    config = imagining()
    for split, steps in {"train": 2, "oe": 2, "val": 1, "test": 1, "nearood": 1}.items():
        assert kinds(get_preprocessor(config, split)) == [RandomHorizontalFlip, ToTensor][-steps:], split


def test_detectors_are_fitted_to_training_images_as_they_are(get_preprocessor, drawn):
    config = imagining()
    config.pipeline.name = "test_ood"
    assert kinds(get_preprocessor(config, "train")) == [ToTensor]


@pytest.mark.parametrize("name", ["dream", "base"])
def test_flips_can_be_turned_off(get_preprocessor, drawn, name):
    config = imagining()
    config.preprocessor.update(name=name, horizontal_flip=False)
    assert kinds(get_preprocessor(config, "train")) == [ToTensor]


def test_other_auxiliary_images_are_taken_as_they_are(get_preprocessor, drawn):
    config = imagining()
    config.dataset.oe.imglist_pth = "mine.txt"
    get_preprocessor(config, "train")
    assert drawn == [] and config.dataset.oe.imglist_pth == "mine.txt"


def test_nothing_is_drawn_for_a_trainer_that_learns_from_another_kind_of_image(get_preprocessor, drawn):
    config = imagining(trainer={"name": "dream_id"}, pipeline={"name": "train_oe"})
    with pytest.raises(
        InputError, match="dream.outliers.method: the trainer dream_id learns from inlier, got 'boundary'"
    ):
        get_preprocessor(config, "train")
    assert drawn == []


def test_an_unknown_preprocessor_lists_those_of_both(get_preprocessor):
    with pytest.raises(InputError, match="unknown 'dreem'; did you mean 'dream'?.*base, cutout, dream"):
        get_preprocessor(a_config(preprocessor={"name": "dreem"}), "train")


def _in_each_process(rank: int, folder: str, port: int) -> None:
    """What the processes of the next test do: twice something that only the first one may do, once in vain."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)

    def draw() -> str:
        (Path(folder) / f"drawn by {rank}").touch()
        return "the images"

    def fail() -> str:
        raise ValueError("no disk")

    said = [processes.first_process_only(draw)]
    try:
        processes.first_process_only(fail)
    except (ValueError, InputError) as error:
        said.append(f"{type(error).__name__}: {error}")
    (Path(folder) / f"heard by {rank}").write_text("\n".join(said))
    torch.distributed.destroy_process_group()


def test_with_several_processes_the_first_one_draws_and_the_others_hear_of_it(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_in_each_process, (str(tmp_path), port), nprocs=2)
    heard = [(tmp_path / f"heard by {rank}").read_text().splitlines() for rank in range(2)]
    assert [path.name for path in tmp_path.glob("drawn by *")] == ["drawn by 0"]
    assert heard[0] == ["the images", "ValueError: no disk"]
    assert heard[1] == ["the images", "InputError: the first process failed (ValueError: no disk)"]


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.fixture
def get_network(host):
    openood_dream.register()
    return importlib.import_module("openood.pipelines").get_network


def timm_config(**values) -> Config:
    args = {"channels": [8, 8, 16, 16]}
    return Config({"name": "timm:resnet10t", "num_classes": 3, "image_size": 32, "args": args, "num_gpus": 0, **values})


def test_timm_networks_are_built_inside_openoods_networks_too(get_network):
    name, net = get_network(Config({"name": "around", "backbone": timm_config()}))
    assert name == "around" and isinstance(net, TimmNetwork)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert get_network(Config({"name": "lenet"})) == "their lenet"


def test_a_checkpoint_is_loaded_and_the_network_ready_for_fitting(get_network, tmp_path):
    net = get_network(timm_config())
    torch.save(net.state_dict(), tmp_path / "best.ckpt")
    again = get_network(timm_config(pretrained=True, checkpoint=str(tmp_path / "best.ckpt")))
    x = torch.randn(2, 3, 32, 32)
    assert not again.training
    torch.testing.assert_close(again(x), net.eval()(x))


def test_a_timm_network_without_image_size_says_what_to_write(get_network):
    with pytest.raises(InputError, match=r"network.image_size: .* set it to '@\{dataset.image_size\}'"):
        get_network(timm_config(image_size=None))


def test_an_unknown_network_lists_those_of_openood(get_network):
    with pytest.raises(
        InputError,
        match="network.name: unknown 'lennet'; did you mean 'lenet'?.*around, glow, lenet, pixelcnnpp, timm:<model>, vae",
    ):
        get_network(Config({"name": "lennet"}))
