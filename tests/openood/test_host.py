"""Inside the real OpenOOD, on a CPU: every trainer, every postprocessor, both hosts, and what registration changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hosts import ARGS, QUICK, scores, write
from shipped import FILES, STUDENT, layers_of
from torch.utils.data import DataLoader

import openood_dream
from openood_dream.config.files import shipped_configs
from openood_dream.config.host_names import NAMES
from openood_dream.datasets.imglist import read_imglist
from openood_dream.errors import InputError, InputWarning
from openood_dream.networks.checkpoints import load_weights
from openood_dream.networks.factory import get_network
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.openood import adapted, cache, compat, host, registry
from openood_dream.pipelines import test as scoring
from openood_dream.pipelines import train as training
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.run import hosted

pytestmark = [
    pytest.mark.openood,
    pytest.mark.skipif(not compat.installed("openood"), reason=f"OpenOOD is not installed; {registry.INSTALL}"),
]


@pytest.mark.parametrize("name", sorted(name for name, cls in POSTPROCESSORS.items() if not cls.generative))
def test_both_hosts_agree(name, job, trained):
    """With OpenOOD's own numbers, searches on the validation sets included."""
    if name == "openmax":
        pytest.importorskip("libmr", reason="libmr is not installed")

    def evaluated(backend: str) -> Path:
        layers = ["pipelines/test/test_ood.yml", f"postprocessors/{name}.yml"]
        keys = ["--network.checkpoint", str(trained), *ARGS.get(name, [])]
        return hosted(job(f"scored/{name}/{backend}", layers, *keys, backend=backend), scoring.test)

    ours, theirs = evaluated("standalone"), evaluated("openood")
    assert list(scores(ours)) == list(scores(theirs))
    for row, values in scores(ours).items():
        np.testing.assert_allclose(values, scores(theirs)[row], atol=0.0101, err_msg=row)
    for path in (theirs / "scores").iterdir():
        mine, host = np.load(ours / "scores" / path.name), np.load(path)
        assert set(mine) == set(host) == {"pred", "conf", "label"}
        np.testing.assert_array_equal(mine["pred"], host["pred"])
        np.testing.assert_array_equal(mine["label"], host["label"])


# what OpenOOD's own files say of postprocessors that standalone does not have, in numbers that fit the small data
THEIRS = {
    "nnguide": "{alpha: 0.5, K: 5}",
    "relation": "{pow: 1}",
    "residual": "{dim: 8}",
    "temperature_scaling": "{}",
    "odin": "{temperature: 1000, noise: 0.0014}",
}


def one(name: str, tmp_path: Path) -> list[str]:
    """The config layers that score a checkpoint with a postprocessor of either host."""
    if name not in THEIRS:
        return ["pipelines/test/test_ood.yml", f"postprocessors/{name}.yml"]
    text = f"postprocessor: {{name: {name}, APS_mode: false, postprocessor_args: {THEIRS[name]}, postprocessor_sweep: {{}}}}"
    return ["pipelines/test/test_ood.yml", write(tmp_path / f"{name}.yml", text)]


@pytest.mark.parametrize("name", sorted(cache.SERVED))
def test_cache_and_network_agree(name, job, trained, tmp_path, monkeypatch):
    def rows(kind: str) -> dict[str, list[float]]:
        torch.manual_seed(3)  # nnguide takes a random part of the training images
        keys = ["--network.checkpoint", str(trained), *ARGS.get(name, [])]
        return scores(host.run(job(f"cached/{name}/{kind}", one(name, tmp_path), *keys)))

    cached = rows("cached")
    monkeypatch.setattr(cache, "SERVED", frozenset())
    for row, values in rows("network").items():
        np.testing.assert_allclose(values, cached[row], atol=0.0101, err_msg=row)


def test_passes_are_found_again(job, trained, tmp_path, monkeypatch):
    keys = ["--network.checkpoint", str(trained)]
    host.run(job("passes/first", one("msp", tmp_path), *keys))
    host.run(job("passes/train", one("she", tmp_path), *keys))
    monkeypatch.setattr(cache, "forward_pass", lambda *args: pytest.fail("ran the network again"))
    for name in ("msp", "ebo", "she"):
        host.run(job(f"passes/{name}", one(name, tmp_path), *keys))


def test_edited_forward_gives_new_scores(job, trained, tmp_path, monkeypatch):
    """Whatever the weights, the name and the file of the network say."""
    keys = ["--network.checkpoint", str(trained)]
    rows = [scores(host.run(job("edited/before", one("msp", tmp_path), *keys)))]
    forward = TimmNetwork.forward

    def edited(self, x, return_feature=False, **options):
        logits, features = forward(self, x.flip(1) * 2, return_feature=True)
        return (logits, features) if return_feature else logits

    monkeypatch.setattr(TimmNetwork, "forward", edited)
    rows += [scores(host.run(job("edited/after", one("msp", tmp_path), *keys)))]
    rows += [scores(host.run(job("edited/network", one("msp", tmp_path), *keys, "--evaluator.passes", "false")))]
    assert rows[0] != rows[1] and rows[1] == rows[2]


def test_random_networks_are_not_served(job, trained, tmp_path, monkeypatch):
    forward = TimmNetwork.forward
    monkeypatch.setattr(TimmNetwork, "forward", lambda self, x, **o: forward(self, x + torch.randn_like(x), **o))
    monkeypatch.setattr(cache, "forward_pass", lambda *args: pytest.fail("made a pass"))
    host.run(job("random", one("msp", tmp_path), "--network.checkpoint", str(trained)))


def test_where_passes_lie(job, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    checkpoint = shutil.copy(trained, tmp_path / "mine" / "best.ckpt")
    keys = ["--network.checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "results")]
    host.run(job("off", one("msp", tmp_path), *keys, "--evaluator.passes", "false"))
    assert not list(tmp_path.rglob("pass*"))
    host.run(job("on", one("msp", tmp_path), *keys))
    assert list((tmp_path / "results" / "passes").glob("pass-*")) and os.listdir(tmp_path / "mine") == ["best.ckpt"]


def test_rankfeat_on_a_network_of_timm(job, trained, tmp_path):
    text = "postprocessor: {name: rankfeat, APS_mode: false, postprocessor_args: {accelerate: false, temperature: 1}}"
    layers = ["pipelines/test/test_ood.yml", write(tmp_path / "rankfeat.yml", text)]
    assert "nearood" in scores(host.run(job("rankfeat", layers, "--network.checkpoint", str(trained))))
    net = get_network(job("digits", []).network, image_size=16).eval()
    blocks, x = adapted._with_blocks(net), torch.randn(2, 3, 16, 16)
    third, fourth = blocks.intermediate_forward(x, layer_index=3), blocks.intermediate_forward(x, layer_index=4)
    torch.testing.assert_close(blocks.layer4(third), fourth)
    torch.testing.assert_close(blocks.fc(torch.flatten(blocks.avgpool(fourth), 1)), net(x))


def test_both_hosts_agree_on_the_full_spectrum(job, trained, tmp_path):
    section = job("lists", one("msp", tmp_path)).dataset.split("val")
    lists = f"data_dir: {section.data_dir}, imglist_pth: {section.imglist_pth}"
    text = (
        f"ood_dataset: {{split_names: [val, nearood, farood, csid], csid: {{datasets: [again], again: {{{lists}}}}}}}"
    )
    layers = [*one("ebo", tmp_path), write(tmp_path / "csid.yml", text)]
    keys = ["--network.checkpoint", str(trained), "--evaluator.ood_scheme", "fsood"]
    ours, theirs = (
        scores(hosted(job(f"full/{backend}", layers, *keys, backend=backend), scoring.test))
        for backend in ("standalone", "openood")
    )
    assert list(ours) == list(theirs)
    for row, values in ours.items():
        np.testing.assert_allclose(values, theirs[row], atol=0.0101, err_msg=row)


def test_gradients_need_the_real_network(job, trained, tmp_path):
    folder = host.run(job("odin", one("odin", tmp_path), "--network.checkpoint", str(trained)))
    assert scores(folder)["nearood"][1] > 40


def test_output_that_is_no_number(job, trained, tmp_path):
    state = torch.load(trained, weights_only=True)
    state["backbone.conv1.0.weight"][:] = 3e38  # what overflows; weights that are no numbers are refused when loaded
    torch.save(state, tmp_path / "best.ckpt")
    config = job("broken", one("msp", tmp_path), "--network.checkpoint", str(tmp_path / "best.ckpt"))
    with pytest.raises(InputError, match=r"msp: the network's output for image 0 of test \(digits/test/.*png\) is not"):
        host.run(config)


SWEEPS = {"gen": "{gamma_list: [0.1, 1, 5], M_list: [2, 4, 6]}", "fdbd": "{distance_as_normalizer_list: [true, false]}"}
SWEEPS |= {
    "react": "{percentile_list: [70, 90, 99]}",
    "vim": "{dim_list: [4, 8, 12]}",
    "ebo": "{temperature_list: [1, 2]}",
}


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_both_hosts_choose_the_same_hyperparameters(name, job, trained):
    found = []
    for backend in ("standalone", "openood"):
        layers = ["pipelines/test/test_ood.yml", f"postprocessors/{name}.yml"]
        keys = ["--network.checkpoint", str(trained), "--postprocessor.APS_mode", "true", *ARGS.get(name, [])]
        config = job(f"chosen/{name}/{backend}", layers, *keys, backend=backend)
        config = config.changed({"postprocessor.postprocessor_sweep": yaml.safe_load(SWEEPS[name])})
        found.append(scores(hosted(config, scoring.test)))
    for row in found[0]:
        np.testing.assert_allclose(found[0][row], found[1][row], atol=0.0101, err_msg=row)


GENERATIVE = ["networks/vae_small.yml", "pipelines/train/frl.yml"]


@pytest.mark.parametrize("name", sorted(name for name, cls in POSTPROCESSORS.items() if cls.generative))
def test_both_hosts_agree_on_generative_networks(name, job, tmp_path):
    keys = ["--network.latent", "8", "--network.width", "4", "--network.channels", "1"]
    trained = job(
        "generative",
        GENERATIVE,
        *keys,
        "--pipeline.name",
        "train",
        "--trainer.frequency",
        str(name == "frl"),
        "--output_dir",
        str(tmp_path),
    )
    folder = host.run(trained)
    found = []
    for backend in ("standalone", "openood"):
        layers = ["networks/vae_small.yml", "pipelines/test/test_ood.yml", f"postprocessors/{name}.yml"]
        own = ["--network.checkpoint", str(folder / "best.ckpt"), "--output_dir", str(tmp_path)]
        short = ["--postprocessor.postprocessor_args.steps", "3", "--postprocessor.postprocessor_args.samples", "5"]
        own += short if name.startswith("likelihood_regret") else []
        found.append(hosted(job(f"{name}/{backend}", layers, *keys, *own, backend=backend), scoring.test))
    ours, theirs = map(scores, found)
    assert list(ours) == list(theirs)
    for row in ours:
        np.testing.assert_allclose(ours[row][:4], theirs[row][:4], atol=0.0101, err_msg=row)


# ---------------------------------------------------------------------------------------------------------- training


# what OpenOOD's own config files say of these trainers, in numbers that fit the small data
VOS = """
num_classes: '@{dataset.num_classes}'
sample_number: 5
sample_from: 50
select: 1
feature_dim: 16
start_epoch: 0
pipeline: {name: train}
trainer: {name: vos, loss_weight: 0.1}
"""
NPOS = """
pipeline: {name: train}
preprocessor: {name: cider}
trainer:
  name: npos
  trainer_args: {proto_m: 0.95, temp: 0.1, sample_number: 5, sample_from: 20, start_epoch_KNN: 0, K: 3, cov_mat: 0.1,
    select: 4, ID_points_num: 5, pick_nums: 2, w_disp: 0.5, w_comp: 1, loss_weight: 0.1}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.0001, warm: true, cosine: true, lr_decay_rate: 0.1,
  lr_decay_epochs: [30], mlp_decay_rate: 0.1}
recorder: {name: cider, save_all_models: false}
network:
  name: npos_net
  num_classes: '@{dataset.num_classes}'
  pretrained: false
  num_gpus: '@{num_gpus}'
  checkpoint: none
  feat_dim: 8
  head: mlp
  backbone: {name: 'timm:resnet10t', args: {channels: [8, 8, 16, 16]}, num_classes: '@{dataset.num_classes}',
    pretrained: false, num_gpus: '@{num_gpus}'}
"""
LAYERS = {
    "base": ["pipelines/train/base.yml"],
    "oe": ["pipelines/train/oe.yml", "datasets/digits/digits_oe.yml"],
    "dream_ood": ["pipelines/train/dream_ood.yml", "preprocessors/dream.yml"],
    "dream_id": ["pipelines/train/dream_id.yml", "preprocessors/dream.yml"],
}
SMALL_BATCH = ["--dataset.train.batch_size", "16"]


@pytest.mark.parametrize("name", ["base", "oe", "dream_ood", "dream_id", "vos", "npos"])
def test_every_trainer_trains(name, job, tmp_path):
    texts = {"vos": VOS, "npos": NPOS}
    layers = [write(tmp_path / f"{name}.yml", texts[name])] if name in texts else LAYERS[name]
    out = hosted(job(f"trained/{name}", layers, *SMALL_BATCH), training.train)
    state = torch.load(out / "best.ckpt", weights_only=True)
    assert state and all(torch.isfinite(tensor).all() for tensor in state.values())
    config = yaml.safe_load((out / "config.yml").read_text())
    assert config["trainer"]["name"] == name
    if name.startswith("dream"):
        rows = read_imglist(config["dataset"]["oe"]["imglist_pth"])
        method = {"dream_ood": "knn", "dream_id": "inlier"}[name]
        assert config["outlier_data"] == f"imagined ({method})" and len(rows) == 6 * 4
        labels = {label for _, label in rows}
        assert labels == ({-1} if name == "dream_ood" else set(range(6)))
    assert not registry.registered()


# our own, from our own files, with numbers that fit
OURS = {
    "vos": "sample_number: 16, sample_from: 50, start_epoch: 0",
    "npos": "trainer_args: {sample_number: 32, sample_from: 20, start_epoch_KNN: 0, K: 3, select: 4, ID_points_num: 5}",
}


@pytest.mark.parametrize("name", sorted(OURS))
def test_implementation_ours(name, job, tmp_path):
    small = write(tmp_path / "small.yml", f"trainer: {{implementation: ours, {OURS[name]}}}")
    out = hosted(job(f"ours/{name}", [f"pipelines/train/{name}.yml", small], *SMALL_BATCH), training.train)
    net = get_network(job("digits", []).network, image_size=16)
    load_weights(net, out / "best.ckpt")  # no layer of OpenOOD's own networks is in it


@pytest.mark.parametrize("name", ["vos", "npos"])
def test_shipped_files_fit_any_network(name, job):
    """OpenOOD's vos is told the width of the features; its npos takes only npos_net, so that ours trains others."""
    small = {"trainer_args.start_epoch_KNN": 0, "trainer_args.sample_number": 32, "trainer_args.K": 3}
    small |= {"trainer_args.select": 4, "trainer_args.sample_from": 20, "trainer_args.ID_points_num": 5}
    small = small if name == "npos" else {"sample_number": 5, "sample_from": 50, "start_epoch": 0}
    words = [word for key, value in small.items() for word in (f"--trainer.{key}", str(value))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = hosted(job(f"shipped/{name}", [f"pipelines/train/{name}.yml"], *SMALL_BATCH, *words), training.train)
    load_weights(get_network(job("digits", []).network, image_size=16), out / "best.ckpt")
    said = [str(one.message) for one in caught if one.category is InputWarning]
    assert any("ours trains npos" in text for text in said) == (name == "npos")


def test_refused_run_leaves_no_folder(job, tmp_path):
    layer = write(tmp_path / "mixup.yml", "trainer: {name: mixup}\npipeline: {name: train}\n")
    config = job("refused", [layer], *SMALL_BATCH, "--merge_option", "default")
    with pytest.raises(AttributeError):  # OpenOOD's own, for want of trainer_args
        host.run(config)
    assert not config.run.folder.exists()


def test_oal_in_openood(job, tmp_path):
    teacher = "{network: 'timm:resnet10t', args: {channels: [8, 8, 16, 16]}, epochs: 1}"
    layer = write(tmp_path / "oal.yml", f"pipeline: {{name: train}}\ntrainer: {{name: oal, teacher: {teacher}}}\n")
    config = job("trained/oal", [layer], *SMALL_BATCH)
    out = hosted(config, training.train)
    net = get_network(job("digits", []).network, image_size=16)
    load_weights(net, out / "best.ckpt")
    assert list(Path(config.dream.cache_dir).glob("teacher-*/best.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_trains_an_epoch_as_shipped(name, job, tmp_path):
    def trained(name: str, *words: str) -> Path:
        return hosted(job(f"as_shipped/{name}", layers_of(name, tmp_path), *words), training.train) / "best.ckpt"

    words = ["--network.checkpoint", str(trained(STUDENT[name]))] if name in STUDENT else []
    state = torch.load(trained(name, *words), weights_only=True)
    assert state and all(torch.isfinite(tensor).all() for tensor in state.values())


def test_checkpoints_are_exchanged(job, trained):
    theirs = hosted(job("exchange/theirs", LAYERS["base"], *QUICK), training.train) / "best.ckpt"
    for checkpoint, backend in ((theirs, "standalone"), (trained, "openood")):
        layers = ["pipelines/test/test_ood.yml", "postprocessors/msp.yml"]
        config = job(f"exchange/{backend}", layers, "--network.checkpoint", str(checkpoint), backend=backend)
        folder = hosted(config, scoring.test)
        assert set(scores(folder)) == {"near_digits", "nearood", "flower", "scrambled", "farood"}
        assert scores(folder)["nearood"][4] > 50  # percent of six classes: the weights have arrived


def test_files_of_openood_mix_with_ours(job, tmp_path):
    network = """
network:
  name: resnet18_32x32
  num_classes: '@{dataset.num_classes}'
  pretrained: False
  checkpoint: none
  num_gpus: '@{num_gpus}'
"""
    mixup = "trainer: {name: mixup, trainer_args: {alpha: 0.2}}\npipeline: {name: train}\n"
    config = job("mixed", [write(tmp_path / "net.yml", network), write(tmp_path / "mixup.yml", mixup)], *SMALL_BATCH)
    out = hosted(config, training.train)
    assert "layer4.1.conv2.weight" in torch.load(out / "best.ckpt", weights_only=True)
    assert yaml.safe_load((out / "config.yml").read_text())["trainer"]["name"] == "mixup"


def test_several_processes(job):
    config = job(
        "spawned",
        LAYERS["dream_ood"],
        *SMALL_BATCH,
        "--num_gpus",
        "2",
        "--dataset.num_gpus",
        "2",
        "--network.num_gpus",
        "2",
    )
    config = config.changed({"dream.synthesis.seed": 17})  # images that no other test has drawn
    out = hosted(config, training.train)
    trained = yaml.safe_load((out / "config.yml").read_text())
    assert trained["outlier_data"] == "imagined (knn)" and Path(trained["dataset"]["oe"]["imglist_pth"]).exists()
    assert not any(name.startswith("module.") for name in torch.load(out / "best.ckpt", weights_only=True))


# ------------------------------------------------------------------------------------------------------ registration


def bound() -> dict[str, object]:
    """What the factories' names are bound to in every module of OpenOOD; evaluation_api has tables of its own."""
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "openood"}
    own = ("openood.evaluation_api", "openood.networks.net_utils_")
    return {
        f"{module}.{name}": vars(found)[name]
        for module, found in modules.items()
        for name in registry.FACTORIES
        if name in vars(found) and not module.startswith(own)
    }


def test_every_bound_name_is_replaced_and_restored():
    openood_dream.register()
    openood_dream.unregister()
    before = bound()
    assert len(before) > 40
    openood_dream.register()
    openood_dream.register()
    after = bound()
    assert [name for name in before if after[name] is before[name]] == []
    openood_dream.unregister()
    assert bound() == before


OE_FAMILY = ("oe", "mcd", "udg", "mixoe")  # OpenOOD's trainers with two loaders


@pytest.mark.parametrize("factory", ["get_trainer", "get_preprocessor", "get_evaluator", "get_pipeline"])
def test_our_table_has_openoods_names(factory):
    """OpenOOD knows each name: asked with nothing to make it of, it complains of anything but the name."""
    section = registry.FACTORIES[factory][0].removesuffix("s")
    with host.registration(cpu=True):
        wing, settings = (
            import_module(f"openood.{registry.FACTORIES[factory][0]}"),
            import_module("openood.utils").Config,
        )
        original = getattr(wing, factory).__wrapped__
        for name in NAMES[factory]:
            asked = settings({section: {"name": name}})
            loaders = [None, None] if name in OE_FAMILY else DataLoader([0])
            args = {"get_trainer": (None, loaders, None, asked), "get_preprocessor": (asked, "train")}
            try:
                original(*args.get(factory, (asked,)))
            except Exception as error:
                assert not (isinstance(error, KeyError) and error.args == (name,))


WITHOUT_EXTRAS = """
import sys
import openood_dream
import openood_dream.errors
from openood_dream.openood import compat, registry
sys.meta_path.insert(0, compat._Extras())  # asked first, it answers for the extras that are installed too
with compat.enabled(cpu=True):
    openood_dream.register()
    from openood.evaluation_api import Evaluator
    from openood.preprocessors.draem_preprocessor import DRAEMPreprocessor
    import openood.postprocessors as p
    try:
        p.openmax_postprocessor.libmr.MR()
    except openood_dream.errors.InputError as error:
        print(error)
"""


def test_without_extras():
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == compat.lack("libmr")


MAIN = """
import openood_dream
from openood_dream.openood import compat
compat.enable(cpu=True)
openood_dream.register()
from openood.pipelines import get_pipeline
from openood.utils import launch, setup_config

def main(config):
    get_pipeline(config).run()

if __name__ == "__main__":
    config = setup_config()
    launch(main, config.num_gpus, num_machines=1, machine_rank=0, dist_url="auto", args=(config,))
"""


def users_own(tmp_path: Path, small: Path, names: list[str], text: str) -> Path:
    """OpenOOD's own parser, launcher and pipeline in a script, with its own reading of the shipped files; the run's folder."""
    (tmp_path / "main.py").write_text(MAIN)
    files = [
        str(shipped_configs() / name) for name in ["datasets/digits/digits.yml", "pipelines/train/base.yml", *names]
    ]
    keys = f"data_root: {small}\nnum_workers: 0\nnum_gpus: 0\nexp_name: run\noptimizer: {{num_epochs: 1}}\n"
    files.append(write(tmp_path / "mine.yml", keys + text))
    command = [sys.executable, "main.py", "--config", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    return tmp_path / "results" / "run"


def test_users_own_main(tmp_path, small):
    out = users_own(tmp_path, small, ["networks/digits_cnn.yml"], "preprocessor: {name: dream}\n")
    assert (out / "best.ckpt").exists()


def test_users_own_main_takes_another_network(tmp_path, small):
    files = ["networks/digits_cnn.yml", "networks/anew.yml", "networks/vae_small.yml", "pipelines/train/frl.yml"]
    out = users_own(tmp_path, small, files, "preprocessor: {name: base}\nnetwork: {latent: 8, width: 4}\n")
    assert (out / "best.ckpt").exists()  # a VAE takes none of the args of the network before


# ------------------------------------------------------------------------------------------------- mistakes, hosts


def test_wrong_trainer(job):
    config = job("mistaken", ["pipelines/train/dream_ood.yml", "preprocessors/dream.yml"])
    config = config.changed({"trainer": {"name": "dream_odd"}})
    with pytest.raises(InputError, match="did you mean 'dream_ood'?.*dream_id.*mixup.*vos"):
        host.run(config)
    assert not config.run.folder.exists()


@pytest.mark.parametrize("section", ["pipeline", "network", "preprocessor", "postprocessor"])
def test_wrong_name(job, section):
    config = job("mistaken", ["pipelines/test/test_ood.yml", "postprocessors/msp.yml"])
    config = config.changed({f"{section}.name": "nonsense"})
    with pytest.raises(InputError, match=f"{section}.name: unknown 'nonsense'.*known are"):
        host.run(config)
    assert not config.run.folder.exists()


@pytest.mark.parametrize(
    "key", ["dataset.train.imglist_pth", "ood_dataset.farood.scrambled.imglist_pth", "network.checkpoint"]
)
def test_missing_file(job, trained, key):
    layers = ["pipelines/test/test_ood.yml", "postprocessors/msp.yml"]
    config = job("absent", layers, "--network.checkpoint", str(trained), f"--{key}", "nowhere.txt")
    with pytest.raises(InputError, match=f": {key}: no such file 'nowhere.txt'"):
        host.run(config)
    assert not config.run.folder.exists()


def test_folder_exists(job):
    config = job("exists", LAYERS["base"], "--merge_option", "default")
    config.run.folder.mkdir(parents=True)
    with pytest.raises(InputError, match="exists already .output_dir.; choose another mark, or --merge_option merge"):
        host.run(config)
    assert not list(config.run.folder.iterdir())


def test_scoring_again(job, trained):
    layers = ["pipelines/test/test_ood.yml", "postprocessors/msp.yml"]
    for _ in range(2):
        folder = host.run(job("again", layers, "--network.checkpoint", str(trained)))
    assert (folder / "ood.csv").read_text().count("nearood") == 1


def test_backend(job, monkeypatch):
    config = job("auto", LAYERS["base"], backend="auto")
    assert host.wanted(config)
    monkeypatch.setattr(compat, "installed", lambda name: False)
    assert not host.wanted(config)
    with pytest.raises(InputError, match="backend: OpenOOD is not installed; pip install --no-deps git"):
        host.wanted(config.changed({"backend": "openood"}))


def test_evaluation_api_without_extras():
    with compat.enabled():
        api = import_module("openood.evaluation_api.postprocessor")
    shared = {name for name, cls in POSTPROCESSORS.items() if not cls.generative} - {"temperature_scaling"}
    assert {"scale", "nnguide", *shared} <= set(api.postprocessors)
