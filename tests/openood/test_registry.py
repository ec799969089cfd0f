"""What registration does to OpenOOD's factories, on a stand-in of OpenOOD's shape that needs no OpenOOD."""

from __future__ import annotations

import importlib
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, RandomHorizontalFlip, ToTensor

import openood_dream
from openood_dream.errors import InputError
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.openood import factories, registry
from openood_dream.trainers.known import TRAINERS

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
            else:
                raise Exception('Unexpected Network Architecture!')
    """,
    "postprocessors/__init__.py": "from .utils import get_postprocessor",
    "postprocessors/utils.py": "def get_postprocessor(config):\n    return {'msp': 1}[config.postprocessor.name]",
    "evaluators/__init__.py": "from .utils import get_evaluator",
    "evaluators/utils.py": "def get_evaluator(config):\n    return {'base': 1}[config.evaluator.name]",
    "datasets/__init__.py": "from . import utils",
    "datasets/utils.py": "from openood.preprocessors.utils import get_preprocessor",
    "pipelines/__init__.py": "from .utils import get_pipeline",
    "pipelines/train_pipeline.py": """
        from openood.evaluators import get_evaluator
        from openood.networks import get_network
        from openood.trainers import get_trainer
    """,
    "pipelines/utils.py": """
        from . import train_pipeline
        def get_pipeline(config):
            return {'train': 1, 'test_ood': 3}[config.pipeline.name]
    """,
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
    return {
        f"{name}.{attribute}": value
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "openood"
        for attribute, value in vars(module).items()
        if attribute in registry.FACTORIES
    }


class Config(dict):
    """A dict whose keys are attributes too, and None where they are missing, as OpenOOD's."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({k: Config(v) if isinstance(v, dict) else v for k, v in values.items()})

    __getattr__ = dict.get
    __setattr__ = dict.__setitem__


def a_config(**sections) -> Config:
    return Config({"pipeline": {"name": "train"}, "preprocessor": {"name": "base"}, **sections})


# ------------------------------------------------------------------------------------------------------ registration


def test_register_and_unregister(host):
    for module in ("datasets", "pipelines", "postprocessors", "evaluators"):
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


def adding(factory, name: str):
    """Somebody's wrapper, which adds a name to a factory."""

    def wrapper(*args):
        return f"a plugin's {name}" if args[-1].trainer.name == name else factory(*args)

    return wrapper


@pytest.mark.parametrize("module", ["openood.trainers.utils", "openood.pipelines.train_pipeline"])
def test_wrapper_of_someone_else(host, module, monkeypatch):
    """It is bound before or after ours, in one module or another."""
    pipeline = importlib.import_module("openood.pipelines.train_pipeline")
    theirs, ours = a_config(trainer={"name": "theirs"}), a_config(trainer={"name": "dream_odd"})
    bound_in = importlib.import_module(module)
    before = bound_in.get_trainer
    bound_in.get_trainer = early = adding(before, "theirs")
    openood_dream.register()
    assert bound_in.get_trainer(None, None, None, theirs) == "a plugin's theirs"
    factories.check_trainer(bound_in.get_trainer, theirs)
    with pytest.raises(InputError, match="did you mean 'dream_ood'"):
        bound_in.get_trainer(None, None, None, ours)
    assert bound_in.get_trainer(None, None, None, a_config(trainer={"name": "base"})) == "their base"
    pipeline.get_trainer = late = adding(pipeline.get_trainer, "later")
    assert late(None, None, None, a_config(trainer={"name": "later"})) == "a plugin's later"
    openood_dream.unregister()
    assert pipeline.get_trainer is late and (bound_in is pipeline or bound_in.get_trainer is early)
    with pytest.raises(KeyError):  # ours is gone from below it
        late(None, None, None, ours)


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
def test_another_openood_is_refused(host, file, text, says):
    (host / file).write_text(text)
    with pytest.raises(InputError, match="OpenOOD") as caught:
        openood_dream.register()
    assert says in str(caught.value)
    assert not registry.registered()


def test_without_openood(monkeypatch):
    openood_dream.unregister()
    monkeypatch.setattr(registry.compat, "installed", lambda name: False)
    with pytest.raises(InputError, match="not installed; pip install --no-deps git"):
        openood_dream.register()


def test_known_names_are_openoods_and_ours():
    assert set(factories.known("get_trainer")) > {"base", "mixup", "dream_ood", "dream_id", "oal"}
    assert set(factories.known("get_network")) > {"lenet", "timm:<model>", "vae"}
    assert set(factories.known("get_postprocessor")) > {"msp", "scale", "likelihood"}


# ---------------------------------------------------------------------------------------------------------- trainers


@pytest.fixture
def get_trainer(host):
    openood_dream.register()
    return importlib.import_module("openood.pipelines.train_pipeline").get_trainer


OPTIMIZER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "num_epochs": 1}


def test_openoods_own_trainer(get_trainer):
    config = a_config(trainer={"name": "oe", "lambda_oe": 0.5})
    assert get_trainer(None, None, None, config) == "their oe"


def test_our_trainer_of_the_same_name(get_trainer):
    section = {"name": "oe", "lambda_oe": 0.5, "implementation": "ours"}
    config = a_config(trainer=section, dataset={"oe": {}}, pipeline={"name": "train_oe"})
    config.optimizer = {"num_epochs": 1, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    assert type(get_trainer(nn.Linear(2, 2), [[1], [2]], None, config)) is TRAINERS["oe"]


def test_our_trainer_gets_its_loaders(get_trainer):
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


def test_unknown_trainer(get_trainer):
    with pytest.raises(InputError) as caught:
        get_trainer(None, None, None, a_config(trainer={"name": "dream_odd"}))
    message = str(caught.value)
    assert "'dream_odd'; did you mean 'dream_ood'?" in message and "\n" not in message
    assert all(name in message for name in ("base", "dream_id", "mixup", "oe"))


def test_name_that_only_openood_knows():
    """A newer OpenOOD may have more names than our table."""

    def get_trainer(net, train_loader, val_loader, config):
        return {"newest": "theirs"}[config.trainer.name]

    config = a_config(trainer={"name": "newest"})
    assert factories.ask(get_trainer, "trainer.name", "newest", None, None, None, config) == "theirs"
    factories.check_trainer(get_trainer, config)
    with pytest.raises(InputError, match="trainer.name: unknown 'newer'"):
        factories.check_trainer(get_trainer, a_config(trainer={"name": "newer"}))


def test_name_that_this_openood_lacks(get_trainer):
    with pytest.raises(InputError, match="trainer.name: OpenOOD has no 'cutmix' here"):
        get_trainer(None, None, None, a_config(trainer={"name": "cutmix"}))


def test_wrong_pipeline(get_trainer):
    with pytest.raises(InputError, match="the trainer dream_ood needs 'train_oe', got 'train'"):
        get_trainer(None, None, None, a_config(trainer={"name": "dream_ood"}))


def test_mistaken_setting(get_trainer):
    config = a_config(trainer={"name": "dream_ood", "betta": 1}, dataset={"oe": {}}, pipeline={"name": "train_oe"})
    with pytest.raises(InputError, match="trainer.betta: unknown key; did you mean 'beta'?"):
        get_trainer(None, None, None, config)


# ------------------------------------------------------------------------------------------------------ preprocessor


@pytest.fixture
def get_preprocessor(host):
    openood_dream.register()
    return importlib.import_module("openood.datasets.utils").get_preprocessor


@pytest.fixture
def drawn(monkeypatch):
    """Counts how often images would be drawn."""
    calls = []
    images = ("/images/imglist.txt", "/images", "imagined (boundary)")
    monkeypatch.setattr(factories, "imagine", lambda config: calls.append(1) or images)
    return calls


def imagining(**sections) -> Config:
    oe = {"imglist_pth": "imagined", "data_dir": "imagined"}
    dataset = {"name": "d", "split_names": ["train", "oe", "val"], "oe": oe}
    dream = {"class_names": ["a", "b"], "generator": "some/model", "outliers": {"method": "boundary"}}
    return a_config(preprocessor={"name": "dream"}, dataset=dataset, dream=dream, **sections)


def kinds(preprocessor) -> list[type]:
    assert isinstance(preprocessor.transform, Compose)
    return [type(step) for step in preprocessor.transform.transforms]


def test_preprocessor_dream_draws_once(get_preprocessor, drawn):
    config = imagining()
    for split in ("train", "oe", "val", "test"):
        get_preprocessor(config, split)
    assert drawn == [1]
    assert (config.dataset.oe.imglist_pth, config.dataset.oe.data_dir) == ("/images/imglist.txt", "/images")
    assert config.outlier_data == "imagined (boundary)"


def test_what_is_augmented(get_preprocessor, drawn):
    config = imagining()
    for split, steps in {"train": 2, "oe": 2, "val": 1, "test": 1, "nearood": 1}.items():
        assert kinds(get_preprocessor(config, split)) == [RandomHorizontalFlip, ToTensor][-steps:], split


def test_tests_augment_nothing(get_preprocessor, drawn):
    config = imagining()
    config.pipeline.name = "test_ood"
    assert kinds(get_preprocessor(config, "train")) == [ToTensor]


@pytest.mark.parametrize("name", ["dream", "base"])
def test_no_flips(get_preprocessor, drawn, name):
    config = imagining()
    config.preprocessor.update(name=name, horizontal_flip=False)
    assert kinds(get_preprocessor(config, "train")) == [ToTensor]


def test_other_auxiliary_images(get_preprocessor, drawn):
    config = imagining()
    config.dataset.oe.imglist_pth = "mine.txt"
    get_preprocessor(config, "train")
    assert drawn == [] and config.dataset.oe.imglist_pth == "mine.txt"


@pytest.mark.parametrize(("key", "value"), [("interpolation", ["nearest", "bilinear"]), ("jpeg", 75)])
def test_nothing_is_drawn_that_openood_cannot_prepare(get_preprocessor, drawn, key, value):
    config = imagining(trainer={"name": "dream_ood", "loss": "energy", "beta": 1.0}, pipeline={"name": "train_oe"})
    config.dataset.oe[key] = value
    with pytest.raises(InputError, match=f"dataset.oe.{key}: .*backend: standalone"):
        get_preprocessor(config, "oe")
    assert drawn == []


def test_nothing_is_drawn_for_the_wrong_trainer(get_preprocessor, drawn):
    config = imagining(trainer={"name": "dream_id"}, pipeline={"name": "train_oe"})
    with pytest.raises(InputError, match="dream.outliers.method: the trainer dream_id learns from inliers"):
        get_preprocessor(config, "train")
    assert drawn == []


def test_nothing_is_drawn_for_an_unknown_trainer(get_preprocessor, drawn):
    with pytest.raises(InputError, match="trainer.name: unknown 'dream_odd'"):
        get_preprocessor(imagining(trainer={"name": "dream_odd"}, pipeline={"name": "train_oe"}), "train")
    assert drawn == []


def test_unknown_preprocessor(get_preprocessor):
    with pytest.raises(InputError, match="preprocessor.name: unknown 'dreem'; did you mean 'dream'?.*base, .*cutout, "):
        get_preprocessor(a_config(preprocessor={"name": "dreem"}), "train")


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.fixture
def get_network(host):
    openood_dream.register()
    return importlib.import_module("openood.pipelines.train_pipeline").get_network


def timm_config(**values) -> Config:
    args = {"channels": [8, 8, 16, 16]}
    return Config({"name": "timm:resnet10t", "num_classes": 3, "image_size": 32, "args": args, "num_gpus": 0, **values})


def test_timm_inside_openoods_network(get_network):
    name, net = get_network(Config({"name": "around", "backbone": timm_config()}))
    assert name == "around" and isinstance(net, TimmNetwork)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert get_network(Config({"name": "lenet"})) == "their lenet"


def test_checkpoint(get_network, tmp_path):
    net = get_network(timm_config())
    torch.save(net.state_dict(), tmp_path / "best.ckpt")
    again = get_network(timm_config(pretrained=True, checkpoint=str(tmp_path / "best.ckpt")))
    x = torch.randn(2, 3, 32, 32)
    assert not again.training
    torch.testing.assert_close(again(x), net.eval()(x))


def test_timm_needs_image_size(get_network):
    with pytest.raises(InputError, match=r"network.image_size: .* set it to '@\{dataset.image_size\}'"):
        get_network(timm_config(image_size=None))


def test_unknown_network(get_network):
    with pytest.raises(
        InputError,
        match="network.name: unknown 'lennet'; did you mean 'lenet'?.*glow, .*lenet, .*timm:<model>, .*vae",
    ):
        get_network(Config({"name": "lennet"}))
