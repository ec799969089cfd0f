"""The config grammar: what a merged config holds, and the one line that each mistake ends in."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from openood_dream import config as config_module
from openood_dream.config import TRAINER_SETTINGS, Config, InputError, load_config, origin, settings, shipped_configs

DREAM = "dream: {class_names: [cat, dog], generator: some/model"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Tests write their configs in an empty current folder, with a few shipped configs elsewhere."""
    shipped = tmp_path / "shipped"
    for name in ("datasets/digits.yml", "datasets/cifar10.yml", "pipelines/train.yml"):
        (shipped / name).parent.mkdir(parents=True, exist_ok=True)
        (shipped / name).write_text(f"from: {name}\n")
    monkeypatch.setattr(config_module, "shipped_configs", lambda: shipped)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def write(text: str, name: str = "a.yml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def load(text: str, *overrides: str) -> Config:
    return load_config([write(text)], overrides)


def error(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    return str(caught.value)


# --- Config ----------------------------------------------------------------------------------------------------------


def test_config_reads_and_writes_keys_as_attributes():
    config = Config(a={"b": {"c": 1}}, n=2)
    config.a.b.d = {"e": 3}
    assert (config.a.b.c, config.a.b.d.e, config["n"]) == (1, 3, 2)
    assert config.missing is None and config.a.missing is None
    assert config.at("a.b.d.e") == 3 and config.at("a.x.y", "default") == "default"


def test_config_becomes_plain_dicts_that_yaml_can_dump():
    config = load("a: {b: [1, {c: 2}]}")
    plain = config.to_dict()
    assert type(plain["a"]) is dict and yaml.safe_load(yaml.safe_dump(plain)) == {"a": {"b": [1, {"c": 2}]}}


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_copies_keep_values_attributes_and_origins(clone):
    config = clone(load("a: {b: 1}"))
    assert isinstance(config.a, Config) and config.a.b == 1 and origin(config, "a.b") == "a.yml"
    assert list(config) == ["a"]


def test_importing_the_module_is_cheap():
    code = "import sys, openood_dream.config; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    root = Path(config_module.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- merging ---------------------------------------------------------------------------------------------------------


def test_later_files_win_key_by_key():
    first = write("optimizer: {lr: 0.1, name: sgd}\nlist: [1, 2]\n")
    second = write("optimizer: {lr: 0.2}\nlist: [3]\nseed: 4\n", "b.yml")
    config = load_config([first, Path(second)])
    assert config == {"optimizer": {"lr": 0.2, "name": "sgd"}, "list": [3], "seed": 4}
    assert [origin(config, key) for key in ("optimizer.lr", "optimizer.name", "seed")] == ["b.yml", "a.yml", "b.yml"]


def test_a_value_replaces_a_section_and_the_other_way_round():
    config = load_config([write("a: {x: 1}\nb: 2\nc: {y: 3}"), write("a: 4\nb: {z: 5}\nc: {}", "b.yml")])
    assert config == {"a": 4, "b": {"z": 5}, "c": {}}
    assert origin(config, "b") == origin(config, "c") == "b.yml"


def test_dotted_keys_are_nested_keys():
    config = load_config([write("optimizer: {lr: 0.1}"), write("optimizer.lr: 0.2\ntrainer.args.a: 1", "b.yml")])
    assert config == {"optimizer": {"lr": 0.2}, "trainer": {"args": {"a": 1}}}


def test_the_label_of_a_method_may_hold_a_dot():
    config = load("benchmark: {methods: {sigma 0.07: [a.yml]}, seeds: [0], postprocessors: [ebo]}")
    assert settings(config, "benchmark").methods == {"sigma 0.07": ["a.yml"]}


def test_includes_are_merged_before_their_file_relative_to_it_or_shipped():
    write("a: 1\nb: 1", "deep/base.yml")
    write("include: [base.yml, datasets/digits.yml]\nb: 2\nc: 2", "deep/middle.yml")
    config = load_config([write("include: [deep/middle.yml]\nc: 3")])
    assert config == {"a": 1, "b": 2, "from": "datasets/digits.yml", "c": 3}
    assert origin(config, "a") == "deep/base.yml"


def test_a_file_that_is_not_here_is_looked_up_among_the_shipped_ones():
    assert load_config(["datasets/cifar10.yml"])["from"] == "datasets/cifar10.yml"
    write("from: here", "datasets/cifar10.yml")
    assert load_config(["datasets/cifar10.yml"])["from"] == "here"


def test_the_shipped_configs_lie_next_to_the_package():
    assert shipped_configs().parts[-2:] == ("configs", "openood")


def test_numbers_in_scientific_notation_are_numbers_with_or_without_a_dot():
    assert load("a: 1e-3\nb: 1.5e3\nc: -2E+2\nd: '1e-3'\ne: e10") == {
        "a": 1e-3,
        "b": 1500,
        "c": -200,
        "d": "1e-3",
        "e": "e10",
    }


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (["--a.b", "3"], 3),
        (["--a.b=3"], 3),
        (["--a.b", "-0.5"], -0.5),
        (["--a.b", "1e-3"], 1e-3),
        (["--a.b", "true"], True),
        (["--a.b", "null"], None),
        (["--a.b", "[1, x]"], [1, "x"]),
        (["--a.b", "{c: 2}"], {"c": 2}),
        (["--a.b", "'3'"], "3"),
        (["--a.b", '""'], ""),
        (["--a.b=x=y"], "x=y"),
        (["--a.b", "__import__('os')"], "__import__('os')"),
        (["--a.b", "1", "--a.b", "2"], 2),
    ],
)
def test_overrides_have_yaml_types(tokens, value):
    config = load("a: {b: old, c: 1}", *tokens)
    assert config == {"a": {"b": value, "c": 1}} and type(config.a.b) in (type(value), Config)
    assert origin(config, "a.b") == "command line"


def test_overrides_may_set_keys_of_our_schemas_that_no_file_mentions():
    overrides = ["--trainer.beta", "2.5", "--trainer.name=dream_ood", "--seed", "3", "--dream.outliers.k=7"]
    overrides += ["--dream.space.network_args.depth", "4"]
    config = load(DREAM + "}", *overrides)
    assert settings(config, "trainer").beta == 2.5 and settings(config, "").seed == 3
    assert settings(config, "dream").outliers.k == 7 and settings(config, "dream.space").network_args == {"depth": 4}


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (["--a.b"], "a.b: no value; write null for none and '\"\"' for empty text"),
        (["--a.b", "--a.c", "1"], "a.b: no value; write null for none and '\"\"' for empty text"),
        (["--a.b="], "a.b: no value; write null for none and '\"\"' for empty text"),
        (["a.b", "1"], "expected --key.sub value, got 'a.b'"),
        (["--", "1"], "expected --key.sub value, got '--'"),
        (["--a..b", "1"], "expected names separated by single dots as a key, got 'a..b'"),
        (["--a.lrr", "1"], "a.lrr: unknown key; did you mean '--a.lr'?"),
        (["--sigma", "1"], "sigma: unknown key; did you mean '--dream.outliers.sigma'?"),
        (["--trainer.beta", "1"], "trainer.beta: unknown key; did you mean '--trainer.name'?"),
        (["--qqqqqq", "1"], "qqqqqq: unknown key; an override must name a key of the configs"),
        (
            ["--a.b", "[1"],
            (
                "a.b: expected a YAML value, got '[1' "
                "(while parsing a flow sequence: expected ',' or ']', but got '<stream end>')"
            ),
        ),
    ],
)
def test_a_bad_override_is_named(tokens, line):
    assert error("a: {b: 1, c: 1, lr: 1}\ntrainer: {name: mixup}", *tokens) == f"command line: {line}"


# --- references ------------------------------------------------------------------------------------------------------


def test_a_whole_reference_keeps_the_type_and_follows_later_files_and_overrides():
    first = write("n: 8\ndata: {n: '@{n}', list: ['@{n}', {m: '@{n}'}], all: '@{group}'}\ngroup: {a: '@{n}'}")
    config = load_config([first, write("n: 9", "b.yml")])
    assert config.data == {"n": 9, "list": [9, {"m": 9}], "all": {"a": 9}}
    assert load_config([first], ["--n", "false"]).data.n is False


def test_composed_references_become_text_without_their_quotes():
    config = load("""
        net: {name: resnet, lr: 0.1}
        tag: "'@{net.name}'_lr'@{net.lr}'/s'@{seed}'"
        seed: 0
        mail: someone@example.org
    """)
    assert config.tag == "resnet_lr0.1/s0" and config.mail == "someone@example.org"


def test_references_to_references_and_through_them():
    config = load("""
        a: '@{b.c}'
        b: {c: "'@{d}'!"}
        d: '@{e.f.g}'
        e: {f: '@{h}'}
        h: {g: end}
    """)
    assert (config.a, config.d, config.e.f) == ("end!", "end", {"g": "end"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: '@{b}'\nb: '@{a}'", "a.yml: a: the reference '@{b}' leads back to itself (b -> a -> b)"),
        ("a: '@{a}'", "a.yml: a: the reference '@{a}' leads back to itself (a -> a)"),
        ("a: {b: '@{a}'}", "a.yml: a.b: the reference '@{a}' leads back to itself (a -> a)"),
        ("a: {b: '@{sed}'}\nseed: 1", "a.yml: a.b: the reference '@{sed}' names no key; did you mean '@{seed}'?"),
        ("a: {b: \"x'@{qqq}'\"}", "a.yml: a.b: the reference '@{qqq}' names no key"),
        ("a: x\nb: '@{a.c}'", "a.yml: b: the reference '@{a.c}' names no key"),
        (
            "a: {c: 1}\nb: \"x'@{a}'\"",
            "a.yml: b: expected a reference to a single value inside text, got the section '@{a}'",
        ),
        ("a: 1\nb: x_@{a}", "a.yml: b: expected quotes around a reference inside text, '@{a}', got 'x_@{a}'"),
    ],
)
def test_a_bad_reference_is_named(text, line):
    assert error(text) == line


# --- files that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nowhere.yml", "nowhere.yml: no such file, nor among the shipped configs"),
        (
            "datasets/digit.yml",
            "datasets/digit.yml: no such file, nor among the shipped configs; did you mean 'datasets/digits.yml'?",
        ),
        (
            "/x/y/z/digts.yml",
            "/x/y/z/digts.yml: no such file, nor among the shipped configs; did you mean 'datasets/digits.yml'?",
        ),
        ("datasets", "datasets: expected a file, got a folder"),
        (".", ".: expected a file, got a folder"),
    ],
)
def test_a_missing_file_is_named_with_the_nearest_shipped_one(name, line):
    with pytest.raises(InputError) as caught:
        load_config([name])
    assert str(caught.value) == line


def test_a_missing_file_is_named_with_the_nearest_one_beside_it():
    write("{}", "mine/network.yml")
    line = "mine/netwrk.yml: no such file, nor among the shipped configs; did you mean 'mine/network.yml'?"
    with pytest.raises(InputError) as caught:
        load_config(["mine/netwrk.yml"])
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: c: d", "a.yml:2:5: mapping values are not allowed here"),
        ("a: [1, 2", "a.yml:1:9: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"),
        (
            "a: @{b}",
            (
                "a.yml:1:4: while scanning for the next token: found character '@' that cannot start any token; "
                "put a reference in quotes, '@{key}'"
            ),
        ),
        ("a: 1\nb: \x07", "a.yml:2:4: the character #x0007 is not allowed"),
        ("a: 1\nb: 2\na: 3", "a.yml:3:1: the key 'a' is given twice, first on line 1"),
        ("a:\n  lr: 1\n  lr: 1", "a.yml:3:3: the key 'lr' is given twice, first on line 2"),
        ("a: [{b: 1, b: 2}]", "a.yml:1:12: the key 'b' is given twice, first on line 1"),
        ("on: 1", "a.yml:1:1: expected text as a key, got 'on'; put it in quotes"),
        ("a: &x [*x]", "a.yml:1:4: an alias to the very value that it stands in"),
        ("a: 2024-99-01", "a.yml:1:4: not a valid timestamp: '2024-99-01'"),
        ("a: !!python/name:os.system x", None),
        ("a: 99999999999999999999", "a.yml:1:4: a whole number of more than 64 bits"),
        ("- a", "a.yml: expected a mapping of settings at the top level, got ['a']"),
        ("# nothing", "a.yml: expected a mapping of settings at the top level, got an empty file"),
        ("a..b: 1", "a.yml: expected names separated by single dots as a key, got 'a..b'"),
        ("a: " + "[" * 5000, "a.yml: nested too deeply"),
        ("include: b.yml", "a.yml: include: expected a list of files, got 'b.yml'"),
        ("include: [1]", "a.yml: include: expected a list of files, got [1]"),
        ("include: [nowhere.yml]", "a.yml: include: nowhere.yml: no such file, nor among the shipped configs"),
        ("include: [a.yml]", "a.yml: include: a.yml leads back to itself (a.yml -> a.yml)"),
    ],
)
def test_a_malformed_file_is_named_with_line_and_column(text, line):
    found = error(text)
    assert found == line if line else found.startswith("a.yml:1:4: could not determine a constructor")


def test_a_cycle_of_includes_is_shown():
    write("include: [../a.yml]", "sub/b.yml")
    expected = "sub/b.yml: include: ../a.yml leads back to itself (a.yml -> sub/b.yml -> sub/../a.yml)"
    assert error("include: [sub/b.yml]") == expected


def test_a_file_that_is_not_text_is_named(folder):
    Path("a.yml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match=r"^a\.yml: expected UTF-8 text, got byte 0xff$"):
        load_config(["a.yml"])


# --- our sections ----------------------------------------------------------------------------------------------------


def test_settings_fill_in_the_defaults():
    config = load(DREAM + ", outliers: {sigma: auto}, space: {lr: 1}}")
    dream = settings(config, "dream")
    assert (dream.outliers.sigma, dream.outliers.k, dream.space.lr, dream.synthesis.size) == ("auto", 300, 1.0, 512)
    assert settings(config, "dream.anchors").multi_token == "mean" and settings(config, "").device == "auto"
    assert dream.generator == "some/model" and dream.class_names == ["cat", "dog"]
    assert list(config) == ["dream"] and list(config.dream) == ["class_names", "generator", "outliers", "space"]


def test_settings_work_on_any_dict():
    assert settings({"dream": {"outliers": {"k": 5}}}, "dream.outliers").k == 5
    assert settings({}, "dream.space").epochs == 200
    with pytest.raises(InputError) as caught:
        settings({"dream": {"outliers": {"k": "5"}}}, "dream.outliers")
    assert str(caught.value) == "dream.outliers.k: expected an integer >= 1, got '5'"


def test_a_generator_is_a_name_or_its_training():
    config = load("dream: {class_names: names.txt, generator: {train: small, steps: 10}}")
    assert settings(config, "dream").generator.steps == settings(config, "dream.generator").steps == 10


@pytest.mark.parametrize("name", TRAINER_SETTINGS)
def test_every_trainer_has_settings_with_its_own_name(name):
    assert settings({"trainer": {"name": name}}, "trainer").name == name


def test_every_field_is_described():
    # those of a postprocessor stand beside what it computes
    sections = [model for model in config_module.Section.__subclasses__() if model.__module__ == config_module.__name__]
    models = [*TRAINER_SETTINGS.values(), *sections]
    assert [
        f"{m.__name__}.{key}" for m in models for key, field in m.model_fields.items() if not field.description
    ] == []


def test_openoods_own_trainers_and_unknown_top_level_keys_pass_through():
    text = "trainer: {name: mixup, lrr: 1}\ntrainer_name: x\nnum_gpus: 1\nmark: x\nrecorder: {}\nmarker: 2\nspeech: 1"
    assert load(text).trainer.lrr == 1


OUTLIERS = DREAM + ", outliers: {%s}}"
PROMPT = "expected text with {} once, where the class name goes, and no other braces"
MANY = "benchmark: {methods: {%s}, seeds: [%s], postprocessors: [%s]}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (OUTLIERS % "sgima: 0.1", "dream.outliers.sgima: unknown key; did you mean 'sigma'?"),
        (OUTLIERS % "k: many", "dream.outliers.k: expected an integer >= 1, got 'many'"),
        (OUTLIERS % "k: 0", "dream.outliers.k: expected an integer >= 1, got 0"),
        (OUTLIERS % "k: true", "dream.outliers.k: expected an integer >= 1, got true"),
        (OUTLIERS % "k: 3.0", "dream.outliers.k: expected an integer >= 1, got 3.0"),
        (OUTLIERS % "k: null", "dream.outliers.k: expected an integer >= 1, got null"),
        (OUTLIERS % "k: [1]", "dream.outliers.k: expected an integer >= 1, got [1]"),
        (OUTLIERS % "k: {a: 1}", "dream.outliers.k: expected an integer >= 1, got a mapping"),
        (OUTLIERS % "sigma: 0", "dream.outliers.sigma: expected a number > 0 or 'auto', got 0"),
        (OUTLIERS % "sigma: wide", "dream.outliers.sigma: expected a number > 0 or 'auto', got 'wide'"),
        (OUTLIERS % "sigma: .nan", "dream.outliers.sigma: expected a number > 0 or 'auto', got nan"),
        (OUTLIERS % "multiple: .inf", "dream.outliers.multiple: expected a number > 0, got inf"),
        (OUTLIERS % "fraction: 2", "dream.outliers.fraction: expected a number > 0 and <= 1, got 2"),
        (OUTLIERS % "method: nn", "dream.outliers.method: expected 'knn', 'inlier', 'boundary' or 'plain', got 'nn'"),
        (OUTLIERS % "keep: 9, n_draws: 5", "dream.outliers.keep: expected keep <= n_draws, got keep 9 and n_draws 5"),
        (OUTLIERS % "n_draws: 1", "dream.outliers.n_draws: expected keep <= n_draws, got keep 2 and n_draws 1"),
        (
            OUTLIERS % "select: 20",
            "dream.outliers.select: expected n_boundary <= select, got n_boundary 50 and select 20",
        ),
        (DREAM + ", outliers: 5}", "dream.outliers: expected a mapping of settings, got 5"),
        (DREAM + ", space: }", "dream.space: expected a mapping of settings, got null"),
        (DREAM + ", space: {momentum: 1}}", "dream.space.momentum: expected a number > 0 and < 1, got 1"),
        (DREAM + ", space: {seed: -1}}", "dream.space.seed: expected an integer >= 0, got -1"),
        (
            DREAM + ", anchors: {zzz: 1}}",
            "dream.anchors.zzz: unknown key; the keys of dream.anchors are multi_token",
        ),
        (
            DREAM + ", synthesis: {size: 100}}",
            "dream.synthesis.size: expected an integer >= 8 and a multiple of 8 or null, got 100",
        ),
        (
            DREAM + ", synthesis: {prompt: a photo}}",
            f"dream.synthesis.prompt: {PROMPT}, got 'a photo'",
        ),
        (
            DREAM + ", synthesis: {prompt: '{} and {}'}}",
            f"dream.synthesis.prompt: {PROMPT}, got '{{}} and {{}}'",
        ),
        ("dream: 5", "dream: expected a mapping of settings, got 5"),
        ("dream: {generator: x}", "dream.class_names: missing; expected a file or a list of names"),
        (
            "dream: {class_names: x}",
            "dream.generator: missing; expected a model's hub id, a local folder or {train: small}",
        ),
        (
            "dream: {class_names: x, generator: 5}",
            "dream.generator: expected a model's hub id, a local folder or {train: small}, got 5",
        ),
        ("dream: {class_names: x, generator: {train: big}}", "dream.generator.train: expected 'small', got 'big'"),
        ("dream: {class_names: x, generator: {steps: 5}}", "dream.generator.train: missing; expected 'small'"),
        (
            "dream: {class_names: x, generator: {train: small, stps: 5}}",
            "dream.generator.stps: unknown key; did you mean 'steps'?",
        ),
        (
            "dream: {class_names: x, generator: {train: small, empty_fraction: 0.5}}",
            "dream.generator.empty_fraction: expected embedding_fraction + empty_fraction <= 1, got 0.7 + 0.5",
        ),
        ("dream: {generator: x, class_names: []}", "dream.class_names: expected at least one entry, got an empty list"),
        (
            "dream: {generator: x, class_names: [a, a]}",
            "dream.class_names: expected each entry once, got 'a' 2 times",
        ),
        (
            "dream: {generator: x, class_names: [a, no]}",
            "dream.class_names[1]: expected text that is not blank, got false",
        ),
        (
            "dream: {generator: x, class_names: ['']}",
            "dream.class_names[0]: expected text that is not blank, got ''",
        ),
        ("trainer: {name: oe, lamda_oe: 1}", "trainer.lamda_oe: unknown key; did you mean 'lambda_oe'?"),
        ("trainer: {name: dream_ood, beta: -1}", "trainer.beta: expected a number >= 0, got -1"),
        (
            MANY % ("a: x.yml", 0, "ebo"),
            "benchmark.methods.a: expected a list, each entry text that is not blank, got 'x.yml'",
        ),
        (MANY % ("a: [1]", 0, "ebo"), "benchmark.methods.a[0]: expected text that is not blank, got 1"),
        (
            MANY % ("", 0, "ebo"),
            "benchmark.methods: expected at least one label with its config files, got an empty mapping",
        ),
        (MANY % ("../a: []", 0, "ebo"), "benchmark.methods: expected labels that can name a folder, got '../a'"),
        (MANY % ("a: []", "0, 1, 0", "ebo"), "benchmark.seeds: expected each entry once, got 0 2 times"),
        (MANY % ("a: []", "", "ebo"), "benchmark.seeds: expected at least one entry, got an empty list"),
        (MANY % ("a: []", "0, x", "ebo"), "benchmark.seeds[1]: expected an integer >= 0, got 'x'"),
        (MANY % ("a: []", "0", ""), "benchmark.postprocessors: expected at least one entry, got an empty list"),
        (
            "benchmark: {seeds: [0], postprocessors: [ebo]}",
            "benchmark.methods: missing; expected a mapping of labels to lists of config files",
        ),
        ("backend: openod", "backend: expected 'auto', 'openood' or 'standalone', got 'openod'"),
        ("precision: 16", "precision: expected 'auto', 'float32' or 'bfloat16', got 16"),
        ("device: gpu", "device: expected auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
        ("seed: '1'", "seed: expected an integer >= 0, got '1'"),
        ("dreams: {}", "dreams: unknown key; did you mean 'dream'?"),
        ("devise: cpu", "devise: unknown key; did you mean 'device'?"),
        ("includes: [a.yml]", "includes: unknown key; did you mean 'include'?"),
        ("exp_name: x", "output_dir: expected text, since exp_name is set, got null"),
        ("exp_name: x\noutput_dir: [1]", "output_dir: expected text, since exp_name is set, got [1]"),
    ],
)
def test_a_bad_value_is_named_with_file_and_key(text, line):
    assert error(text) == f"a.yml: {line}"


def test_the_file_that_set_the_bad_value_is_named():
    files = [write(OUTLIERS % "k: 5"), write("dream.outliers.k: x", "b.yml")]
    with pytest.raises(InputError, match=r"^b\.yml: dream\.outliers\.k: expected"):
        load_config(files)
    with pytest.raises(InputError, match=r"^command line: dream\.outliers\.k: expected"):
        load_config(files, ["--dream.outliers.k", "y"])


def test_what_a_section_lacks_is_looked_for_in_its_file_and_not_in_an_override():
    assert error("dream: {generator: x}", "--dream.outliers.k", "5").startswith("a.yml: dream.class_names: missing")


def test_of_several_errors_the_first_in_the_files_is_told_and_the_rest_counted():
    text = "trainer: {name: oe, x: 1}\nseed: -1\n" + OUTLIERS % "k: 0, zzz: 1"
    assert (
        error(text)
        == "a.yml: trainer.x: unknown key; the keys of trainer are name, lambda_oe, implementation (and 3 more)"
    )


def test_a_bad_value_that_came_by_reference_is_named_where_it_is_used():
    assert error("n: x\n" + OUTLIERS % "k: '@{n}'") == "a.yml: dream.outliers.k: expected an integer >= 1, got 'x'"


def test_settings_of_a_trainer_that_is_not_ours_name_those_that_are():
    with pytest.raises(InputError) as caught:
        settings(load("trainer: {name: mixup}"), "trainer")
    assert str(caught.value).startswith("a.yml: trainer.name: expected one of base, oe, dream_ood")
    assert str(caught.value).endswith("got 'mixup'")


def test_a_message_is_one_line_whatever_is_in_it():
    assert error('seed: "a\\nb"') == "a.yml: seed: expected an integer >= 0, got 'a\\nb'"
    assert error('trainer: {name: oe, "a\\nb": 1}').splitlines() == [
        "a.yml: trainer.a b: unknown key; the keys of trainer are name, lambda_oe, implementation"
    ]


# --- OpenOOD's conventions -------------------------------------------------------------------------------------------

HOST_FILES = {
    "dataset.yml": """
        dataset:
          name: shapes
          num_classes: 4
          num_workers: '@{num_workers}'
          train: {imglist_pth: ./lists/train.txt, batch_size: 64}
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
        optimizer: {num_epochs: 100, lr: 0.05}
        """,
}


def test_an_openood_run_gets_openoods_output_dir():
    for name, text in HOST_FILES.items():
        write(text, name)
    config = load_config(list(HOST_FILES), ["--seed", "1", "--optimizer.num_epochs", "3", "--mark", "v2"])
    assert config.output_dir == os.path.join("./out/", "shapes_tiny_net_base_e3_lr0.05_v2/s1")
    assert config.exp_name == "shapes_tiny_net_base_e3_lr0.05_v2/s1"
    assert config.network == {"name": "tiny_net", "num_classes": 4, "pretrained": True}
    assert config.dataset.num_workers == 2 and origin(config, "network.pretrained") == "pipeline.yml"


# --- whatever the input ----------------------------------------------------------------------------------------------

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
def test_no_text_raises_anything_but_input_errors(content):
    only_input_errors(content)


@FUZZ
@given(
    st.dictionaries(KEYS, TREES, max_size=5),
    st.lists(st.text(max_size=6) | st.sampled_from(["--seed", "--dream.k", "--a=[", "--exp_name=", "5"]), max_size=3),
)
def test_no_mapping_and_no_override_raises_anything_but_input_errors(tree, overrides):
    only_input_errors(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"), overrides)


@FUZZ
@given(
    st.tuples(LAYERS, LAYERS, LAYERS),
    st.tuples(INCLUDES, INCLUDES, INCLUDES),
    st.lists(st.tuples(DOTTED, LEAVES), max_size=3),
    st.lists(st.sampled_from(FILES), min_size=1, max_size=3),
)
def test_no_set_of_files_raises_anything_but_input_errors(layers, includes, overrides, files):
    Path("below").mkdir(exist_ok=True)
    for file, layer, include in zip(FILES, layers, includes, strict=True):
        Path(file).write_text(yaml.safe_dump({**layer, "include": include}), encoding="utf-8")
    words = [word for key, value in overrides for word in (f"--{key}", yaml.safe_dump(value, default_flow_style=True))]
    load_or_input_error(files, words)


@FUZZ
@given(TREES)
def test_settings_of_any_value_raise_nothing_but_input_errors(tree):
    for section in ("", "dream", "dream.space", "dream.generator", "trainer", "benchmark"):
        for config in (
            Config(dream=tree, trainer=tree, benchmark=tree, seed=tree),
            {"dream": {"space": tree, "generator": tree}},
        ):
            try:
                settings(config, section)
            except InputError as caught:
                assert len(str(caught).splitlines()) == 1
