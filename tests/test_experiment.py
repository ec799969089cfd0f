"""What a config becomes: typed settings of every section, and one line with file and key for each mistake."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from helpers import write
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from openood_dream.config.files import shipped_configs
from openood_dream.config.schema import Section
from openood_dream.config.tree import plain
from openood_dream.errors import InputError, InputWarning
from openood_dream.experiment import Experiment, load_config
from openood_dream.sections import section_models
from openood_dream.trainers.known import TRAINERS

DREAM = "dream: {class_names: [cat, dog], generator: some/model"
OUTLIERS = DREAM + ", outliers: {%s}}"
MANY = "benchmark: {methods: {%s}, seeds: [%s], postprocessors: [%s]}"
DATASET = "dataset: {name: birds, num_classes: 3, image_size: 8, pre_size: 8%s}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> Experiment:
    return load_config(write(text), overrides)


def error(text: str, *overrides: str) -> str:
    """What is said when the config is loaded, or else when its sections are asked for."""
    with pytest.raises(InputError) as caught:
        experiment = load(text, *overrides)
        for section in section_models({}):
            if experiment.at(section) is not None:
                getattr(experiment, section)
    return str(caught.value)


def test_defaults_are_filled_in():
    dream = load(DREAM + ", outliers: {sigma: auto}, space: {lr: 1}}").dream
    assert (dream.outliers.sigma, dream.outliers.k, dream.space.lr, dream.synthesis.size) == ("auto", 300, 1.0, 512)
    assert dream.generator == "some/model" and dream.class_names == ["cat", "dog"]
    assert load("seed: 3").run.seed == 3 and load("seed: 3").run.device == "auto"


def test_settings_are_frozen_and_unknown_attributes_are_errors():
    experiment = load(DREAM + "}\n" + DATASET % "")
    with pytest.raises(AttributeError, match="frozen"):
        experiment.seed = 3
    assert copy.deepcopy(experiment).run.seed == 0
    for section, key in ((experiment.dream, "cache_dir"), (experiment.dataset, "name"), (experiment.run, "seed")):
        with pytest.raises(ValidationError):
            setattr(section, key, "x")
    for section in (experiment, experiment.run, experiment.dream, experiment.dataset, experiment.preprocessor):
        with pytest.raises(AttributeError):
            section.sede  # noqa: B018


def test_a_missing_section_is_named():
    with pytest.raises(InputError, match=r"^dream: missing"):
        load("seed: 1").dream  # noqa: B018
    assert not load("seed: 1").has("dream") and load(DREAM + "}").has("dream")


def test_keys_are_missing_when_their_section_is_asked_for():
    experiment = load(DREAM + "}\noptimizer: {num_epochs: 1}\nnetwork: {pretrained: true}")
    assert experiment.dream.outliers.k == 300 and not experiment.has("optimizer") and not experiment.has("network")
    with pytest.raises(InputError, match=r"^a\.yml: optimizer\.lr: missing"):
        experiment.optimizer  # noqa: B018
    assert error("optimizer: {num_epochs: 0}").startswith("a.yml: optimizer.")


def test_raw_keys_and_their_files():
    experiment = load_config([write("a: {b: 1}\nmethod: x"), write("c: '@{a.b}'", "b.yml")], ["--a.b", "2"])
    assert (experiment.at("a.b"), experiment.at("c"), experiment.at("x.y", 5)) == (2, 2, 5)
    assert [experiment.where(key) for key in ("a.b", "c", "method")] == [
        "command line: a.b",
        "b.yml: c",
        "a.yml: method",
    ]
    experiment.to_dict()["a"]["b"] = 3
    experiment.at("a")["b"] = 3
    assert experiment.at("a.b") == 2 and yaml.safe_load(yaml.safe_dump(experiment.to_dict())) == experiment.to_dict()


def test_a_changed_experiment_is_another_one():
    experiment = load("trainer: {name: oe, lambda_oe: 2}\nseed: 1")
    other = experiment.changed({"trainer": {"name": "base"}, "seed": 2})
    assert (other.trainer.name, other.run.seed, experiment.trainer.name, experiment.run.seed) == ("base", 2, "oe", 1)
    with pytest.raises(InputError, match="a.yml: seed: "):
        experiment.changed({"seed": -1})


def test_a_generator_is_a_name_or_its_training():
    assert load("dream: {class_names: names.txt, generator: {train: small, steps: 10}}").dream.generator.steps == 10


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_has_its_settings(name):
    assert load(f"trainer: {{name: {name}}}").trainer == TRAINERS[name].Settings(name=name)


def every_section(base: type[BaseModel] = Section) -> list[type[BaseModel]]:
    below = [cls for cls in base.__subclasses__() if cls.__module__.startswith("openood_dream")]
    return [*below, *(cls for one in below for cls in every_section(one))]


def test_every_key_of_ours_is_described():
    models = [model for model in every_section() if not model.__qualname__.count(".")]
    lacking = [f"{m.__name__}.{key}" for m in models for key, field in m.model_fields.items() if not field.description]
    assert len(models) > 30 and lacking == []


def test_openoods_own_names_and_keys_pass_through():
    text = "trainer: {name: mixup, lrr: 1}\ntrainer_name: x\nnum_gpus: 1\nmark: x\nrecorder: {save_csv: true}"
    assert load(text).trainer.lrr == 1


def test_keys_of_other_plugins_need_openood():
    text = "speech: 1\noptimizer: {num_epochs: 1, lr: 1.0, momentum: 0.9, weight_decay: 0.0, sam_rho: 0.1}"
    assert error(text).startswith("a.yml: speech: unknown key; ")
    assert load(text + "\nbackend: openood").optimizer.sam_rho == 0.1


def test_a_key_of_ones_own_is_one_that_something_refers_to():
    assert load("my_seed: 3\nseed: '@{my_seed}'").run.seed == 3
    assert error("my_seed: 3\nseed: 1").startswith("a.yml: my_seed: unknown key")


def test_what_standalone_does_not_read_is_said():
    text = "optimizer: {num_epochs: 1, lr: 1.0, momentum: 0.9, weight_decay: 0.0, nesterov: false}"
    with pytest.warns(InputWarning, match="a.yml: optimizer.nesterov: OpenOOD alone reads it"):
        load(text).warn_unread()


def test_shipped_configs_are_silent_about_openoods_keys(recwarn):
    for path in sorted((shipped_configs() / "pipelines" / "train").glob("*.yml")):
        network = "networks/vae.yml" if path.name == "frl.yml" else "networks/digits_cnn.yml"
        load_config(["datasets/digits/digits.yml", network, path]).warn_unread()
    assert not recwarn.list


def test_home_folder_and_variables_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = "root: ~/runs\ndataset: {train: {imglist_pth: ~/a.txt, data_dir: '~'}}"
    values = load(text, "--dream.generator", "~/sd", "--dream.cache_dir=~/x").to_dict()
    assert (values["root"], values["dream"]) == (
        "/home/me/runs",
        {"generator": "/home/me/sd", "cache_dir": "/home/me/x"},
    )
    assert values["dataset"]["train"] == {"imglist_pth": "/home/me/a.txt", "data_dir": "/home/me"}
    assert error("root: $SCRATCH/x").startswith("a.yml: root: expected a path, got '$SCRATCH/x'")
    assert error("root: ~nobody_here/x").startswith("a.yml: root: expected a path")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--root", "run #1"], "root", "run #1"),
        (["--method", "no"], "method", "no"),
        (["--method", "007"], "method", "007"),
        (["--seed", "010"], "seed", 10),
        (["--dream.synthesis.prompt", "photo of {} #1"], "dream.synthesis.prompt", "photo of {} #1"),
        (["--dream.synthesis.prompt", "a photo: of a {}"], "dream.synthesis.prompt", "a photo: of a {}"),
        (["--dream.generator", "{train: small}"], "dream.generator", {"train": "small"}),
        (["--dream.class_names", "[a, b]"], "dream.class_names", ["a", "b"]),
        (["--dream.class_names", "no.txt: x"], "dream.class_names", "no.txt: x"),
        (["--dream.outliers.sigma", "auto"], "dream.outliers.sigma", "auto"),
        (["--dream.outliers.sigma", "1e-2"], "dream.outliers.sigma", 0.01),
        (["--dream.filter.confidence", "null"], "dream.filter.confidence", None),
    ],
)
def test_words_of_the_command_line(words, key, value):
    assert load("backend: standalone", *words).at(key) == value


def test_overrides_reach_keys_that_no_file_mentions():
    overrides = [
        "--trainer.beta",
        "2.5",
        "--trainer.name=dream_ood",
        "--seed",
        "3",
        "--dream.outliers.k=7",
        "--compile",
    ]
    experiment = load(DREAM + "}", *overrides, "--dream.space.network_args.depth", "4")
    assert (experiment.trainer.beta, experiment.run.seed, experiment.dream.outliers.k) == (2.5, 3, 7)
    assert experiment.dream.space.network_args == {"depth": 4} and experiment.run.compile


def test_keys_of_another_trainer_are_unknown():
    assert error("trainer: {name: mixup}", "--trainer.beta", "1").startswith("command line: trainer.beta: unknown key")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (OUTLIERS % "sgima: 0.1", "dream.outliers.sgima"),
        (OUTLIERS % "k: many", "dream.outliers.k"),
        (OUTLIERS % "k: 0", "dream.outliers.k"),
        (OUTLIERS % "k: true", "dream.outliers.k"),
        (OUTLIERS % "k: 3.0", "dream.outliers.k"),
        (OUTLIERS % "k: null", "dream.outliers.k"),
        (OUTLIERS % "k: [1]", "dream.outliers.k"),
        (OUTLIERS % "k: {a: 1}", "dream.outliers.k"),
        (OUTLIERS % "sigma: 0", "dream.outliers.sigma"),
        (OUTLIERS % "sigma: wide", "dream.outliers.sigma"),
        (OUTLIERS % "sigma: .nan", "dream.outliers.sigma"),
        (OUTLIERS % "multiple: .inf", "dream.outliers.multiple"),
        (OUTLIERS % "fraction: 2", "dream.outliers.fraction"),
        (OUTLIERS % "method: nn", "dream.outliers.method"),
        (OUTLIERS % "keep: 9, n_draws: 5", "dream.outliers.keep"),
        (OUTLIERS % "n_draws: 1", "dream.outliers.n_draws"),
        (OUTLIERS % "select: 20", "dream.outliers.select"),
        (DREAM + ", outliers: 5}", "dream.outliers"),
        (DREAM + ", space: }", "dream.space"),
        (DREAM + ", space: {momentum: 1}}", "dream.space.momentum"),
        (DREAM + ", space: {seed: -1}}", "dream.space.seed"),
        (DREAM + ", quality: {zzz: 1}}", "dream.quality.zzz"),
        (DREAM + ", synthesis: {size: 100}}", "dream.synthesis.size"),
        (DREAM + ", synthesis: {prompt: a photo}}", "dream.synthesis.prompt"),
        (DREAM + ", synthesis: {prompt: '{} and {}'}}", "dream.synthesis.prompt"),
        ("dream: 5", "dream"),
        ("dream: {generator: x}", "dream.class_names"),
        ("dream: {class_names: x}", "dream.generator"),
        ("dream: {class_names: x, generator: 5}", "dream.generator"),
        ("dream: {class_names: x, generator: {train: big}}", "dream.generator.train"),
        ("dream: {class_names: x, generator: {steps: 5}}", "dream.generator.train"),
        ("dream: {class_names: x, generator: {train: small, stps: 5}}", "dream.generator.stps"),
        ("dream: {class_names: x, generator: {train: small, empty_fraction: 0.5}}", "dream.generator.empty_fraction"),
        ("dream: {generator: x, class_names: []}", "dream.class_names"),
        ("dream: {generator: x, class_names: [a, a]}", "dream.class_names"),
        ("dream: {generator: x, class_names: [a, no]}", "dream.class_names[1]"),
        ("dream: {generator: x, class_names: ['']}", "dream.class_names[0]"),
        ("trainer: {name: oe, lamda_oe: 1}", "trainer.lamda_oe"),
        ("trainer: {name: dream_ood, beta: -1}", "trainer.beta"),
        (MANY % ("a: x.yml", 0, "ebo"), "benchmark.methods.a"),
        (MANY % ("a: [1]", 0, "ebo"), "benchmark.methods.a[0]"),
        (MANY % ("", 0, "ebo"), "benchmark.methods"),
        (MANY % ("../a: []", 0, "ebo"), "benchmark.methods"),
        (MANY % ("a: []", "0, 1, 0", "ebo"), "benchmark.seeds"),
        (MANY % ("a: []", "", "ebo"), "benchmark.seeds"),
        (MANY % ("a: []", "0, x", "ebo"), "benchmark.seeds[1]"),
        (MANY % ("a: []", "0", ""), "benchmark.postprocessors"),
        ("benchmark: {seeds: [0], postprocessors: [ebo]}", "benchmark.methods"),
        ("backend: openod", "backend"),
        ("precision: 16", "precision"),
        ("device: gpu", "device"),
        ("seed: '1'", "seed"),
        ("dreams: {}", "dreams"),
        ("devise: cpu", "devise"),
        ("includes: [a.yml]", "includes"),
        ("output_dir: [1]", "output_dir"),
        ("dataset: {name: x}", "dataset.num_classes"),
        (DATASET % ", interpolation: cubic", "dataset.interpolation"),
        ("dataset: {name: x, num_classes: 3, pre_size: 8, image_size: 0}", "dataset.image_size"),
        (DATASET % ", num_workers: -1", "dataset.num_workers"),
        (DATASET % ", make: letters", "dataset.make"),
        (DATASET % ", train: {data_dir: x}", "dataset.train.imglist_pth"),
        (DATASET % ", train: {data_dir: 5, imglist_pth: x}", "dataset.train.data_dir"),
        (DATASET % ", train: {data_dir: x, imglist_pth: x, batch_size: 0}", "dataset.train.batch_size"),
        ("dataset: 5", "dataset"),
        ("ood_dataset: {nearood: {datasets: []}}", "ood_dataset.nearood.datasets"),
        ("ood_dataset: {nearood: {datasets: [tin]}}", "ood_dataset.nearood.tin"),
        ("ood_dataset: {farood: {datasets: [a], a: {data_dir: x}}}", "ood_dataset.farood.a.imglist_pth"),
        ("ood_dataset: {batch_size: x}", "ood_dataset.batch_size"),
        ("preprocessor: {horizontal_flip: 1}", "preprocessor.horizontal_flip"),
        ("preprocessor: {name: randaugment, n: 1, m: 31}", "preprocessor.m"),
        ("optimizer: {num_epochs: 1, lr: 0.1, momentum: 0.9}", "optimizer.weight_decay"),
        ("optimizer: {num_epochs: 0, lr: 0.1, momentum: 0.9, weight_decay: 0}", "optimizer.num_epochs"),
        ("optimizer: {num_epochs: 1, lr: x, momentum: 0.9, weight_decay: 0}", "optimizer.lr"),
        ("optimizer: {num_epochs: 1, lr: 1, momentum: 0, weight_decay: 0}", "optimizer.momentum"),
        ("optimizer: {num_epochs: 1, lr: 1, momentum: 1, weight_decay: 0, clip_norm: 0}", "optimizer.clip_norm"),
        ("network: {name: 'timm:resnet18', args: 5}", "network.args"),
        ("network: {name: vae}", "network.image_size"),
        ("network: {name: vae, image_size: 12}", "network.image_size"),
        ("network: {name: glow, image_size: 8, lvels: 2}", "network.lvels"),
        ("postprocessor: {name: ebo, APS_mode: maybe}", "postprocessor.APS_mode"),
        ("postprocessor: {name: ebo, postprocessor_args: 5}", "postprocessor.postprocessor_args"),
        ("merge_option: replace", "merge_option"),
    ],
)
def test_bad_value(text, key):
    assert error(text).startswith(f"a.yml: {key}: ")


def test_nearest_names_are_offered():
    assert error(OUTLIERS % "sgima: 0.1").endswith("did you mean 'sigma'?")
    assert error("trainer: {name: oe, lamda_oe: 1}").endswith("did you mean 'lambda_oe'?")
    assert error("dreams: {}").endswith("did you mean 'dream'?")
    assert "the keys of dream.quality are checkpoint, confidence, k" in error(DREAM + ", quality: {zzz: 1}}")


def test_the_file_that_set_the_bad_value_is_named():
    files = [write(OUTLIERS % "k: 5"), write("dream.outliers.k: x", "b.yml")]
    with pytest.raises(InputError, match=r"^b\.yml: dream\.outliers\.k: expected"):
        load_config(files)
    with pytest.raises(InputError, match=r"^command line: dream\.outliers\.k: expected"):
        load_config(files, ["--dream.outliers.k", "y"])


def test_what_a_section_lacks_is_looked_for_in_its_file():
    assert error("dream: {generator: x}", "--dream.outliers.k", "5").startswith("a.yml: dream.class_names: missing")


def test_the_first_error_in_the_files_is_told_and_the_rest_counted():
    found = error("trainer: {name: oe, x: 1}\nseed: -1\n" + OUTLIERS % "k: 0, zzz: 1")
    assert found.startswith("a.yml: trainer.x: unknown key") and found.endswith("(and 3 more)")


def test_a_bad_value_by_reference_is_named_where_it_is_used():
    assert error("n: x\n" + OUTLIERS % "k: '@{n}'").startswith("a.yml: dream.outliers.k: ")


def test_a_message_is_one_line():
    assert len(error('trainer: {name: oe, "a\\nb": 1}').splitlines()) == 1


HOST_FILES = {
    "dataset.yml": """
        dataset:
          name: shapes
          num_classes: 4
          pre_size: 8
          image_size: 8
          num_workers: '@{num_workers}'
          train: {imglist_pth: ./lists/train.txt, data_dir: ./, batch_size: 64}
        """,
    "network.yml": """
        network: {name: tiny_net, num_classes: '@{dataset.num_classes}', pretrained: False}
        """,
    "pipeline.yml": """
        exp_name: "'@{dataset.name}'_'@{network.name}'_'@{trainer.name}'_e'@{optimizer.num_epochs}'\\
          _lr'@{optimizer.lr}'_'@{mark}'/s'@{seed}'"
        output_dir: ./out/
        mark: default
        seed: 0
        num_workers: 2
        network: {pretrained: True}
        trainer: {name: base}
        optimizer: {num_epochs: 100, lr: 0.05, momentum: 0.9, weight_decay: 0}
        """,
}


def test_output_dir_is_openoods():
    for name, text in HOST_FILES.items():
        write(text, name)
    config = load_config(list(HOST_FILES), ["--seed", "1", "--optimizer.num_epochs", "3", "--mark", "v2"])
    assert config.run.output_dir == os.path.join("./out/", "shapes_tiny_net_base_e3_lr0.05_v2/s1")
    assert config.run.folder == Path("out/shapes_tiny_net_base_e3_lr0.05_v2/s1")
    assert config.to_dict()["output_dir"] == config.run.output_dir
    assert (config.network.name, config.network.num_classes, config.network.pretrained) == ("tiny_net", 4, True)
    assert config.dataset.num_workers == 2 and config.where("network.pretrained").startswith("pipeline.yml")


WORDS = [
    "dream",
    "outliers",
    "k",
    "sigma",
    "trainer",
    "name",
    "oe",
    "benchmark",
    "methods",
    "seeds",
    "exp_name",
    "seed",
]
WORDS += [
    "output_dir",
    "include",
    "class_names",
    "generator",
    "train",
    "small",
    "device",
    "@{seed}",
    "'@{dream}'",
    "a.b",
]
WORDS += [
    "<<",
    "&x",
    "*x",
    "!!int",
    "!!binary",
    "!!omap",
    "!!set",
    "!!timestamp",
    "0x_",
    "=",
    "1:99",
    "|",
    "? [",
    "- ",
    ".",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
KEYS = st.sampled_from(WORDS) | st.text(max_size=4)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)
SOUP = st.lists(st.sampled_from([*WORDS, ": ", "\n", "  ", "{", "}", "[", "]", ", ", '"', "\\ud800", "-"]), max_size=25)
FUZZ = hypothesis_settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


FILES = ("fuzz.yml", "other.yml", "below/third.yml")
DOTTED = st.lists(st.sampled_from(["a", "b", "c", "dream", "seed", "dataset", "trainer"]), min_size=1, max_size=3).map(
    ".".join
)
REFERENCES = st.builds("{}@{{{}}}{}".format, st.sampled_from(["", "x'", "'"]), DOTTED, st.sampled_from(["", "'y", "'"]))
LEAVES = REFERENCES | st.integers(-1, 3) | st.sampled_from([None, [], {}, "text", 0.5])
LAYERS = st.dictionaries(DOTTED, LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(DOTTED, LEAVES, max_size=3))
INCLUDES = st.lists(st.sampled_from([*FILES, "../fuzz.yml", "third.yml", "none.yml", "below", "/", ""]), max_size=3)


def only_input_errors(content: bytes, overrides: tuple[str, ...] | list[str] = ()) -> None:
    Path("fuzz.yml").write_bytes(content)
    load_or_input_error(["fuzz.yml"], overrides)


def load_or_input_error(files: Sequence[str], overrides: Sequence[str]) -> None:
    try:
        config = load_config(files, overrides)
        yaml.safe_dump(config.to_dict())
        copy.deepcopy(config)
    except InputError as caught:
        assert len(str(caught).splitlines()) == 1


@FUZZ
@given(
    st.text().map(lambda text: text.encode()) | SOUP.map(lambda parts: "".join(parts).encode()) | st.binary(max_size=40)
)
@example(b"a: !!timestamp x\n")
@example(b"a: !!bool maybe\n")
@example(b"a: !!int ''\n")
@example(b"a: " + b"9" * 5000)
@example(b"a: 0x" + b"f" * 5000)
@example(b"&a {<<: *a}")
@example(b'dream: {"\\ud800": 1}')
@example(b"!!set {dream, seed}")
@example(b'include: ["a\\0/b.yml"]')
@example(b"include: [" + b"a" * 5000 + b"/b.yml]")
@example(b"a: &x {b: '@{a}'}\nc: *x")
@example(b".".join([b"a"] * 3000) + b": 1")
def test_any_text(content):
    only_input_errors(content)


@FUZZ
@given(
    st.dictionaries(KEYS, TREES, max_size=5),
    st.lists(st.text(max_size=6) | st.sampled_from(["--seed", "--dream.k", "--a=[", "--exp_name=", "5"]), max_size=3),
)
def test_any_mapping_and_override(tree, overrides):
    only_input_errors(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"), overrides)


@FUZZ
@given(
    st.tuples(LAYERS, LAYERS, LAYERS),
    st.tuples(INCLUDES, INCLUDES, INCLUDES),
    st.lists(st.tuples(DOTTED, LEAVES), max_size=3),
    st.lists(st.sampled_from(FILES), min_size=1, max_size=3),
)
def test_any_set_of_files(layers, includes, overrides, files):
    Path("below").mkdir(exist_ok=True)
    for file, layer, include in zip(FILES, layers, includes, strict=True):
        Path(file).write_text(yaml.safe_dump({**layer, "include": include}), encoding="utf-8")
    words = [word for key, value in overrides for word in (f"--{key}", yaml.safe_dump(value, default_flow_style=True))]
    load_or_input_error(files, words)


@FUZZ
@given(TREES)
def test_any_section(tree):
    for values in ({"dream": tree, "trainer": tree, "benchmark": tree, "seed": tree}, {"dream": {"space": tree}}):
        try:
            Experiment(plain(values))
        except InputError as caught:
            assert len(str(caught).splitlines()) == 1
