"""Every key is explained: by the command, in docs/reference.md, and by the help of the commands that read it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from openood_dream import reference
from openood_dream.cli.guides import GUIDES
from openood_dream.cli.words import app, configured, read_words
from openood_dream.config.files import read, shipped_configs
from openood_dream.config.tree import flat
from openood_dream.dream.samplers import SAMPLERS
from openood_dream.experiment import load_config
from openood_dream.postprocessors.known import POSTPROCESSORS
from openood_dream.reference import CHOICES, explain, groups
from openood_dream.trainers.known import TRAINERS

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
REMEDY = "openood-dream config --markdown > docs/reference.md"
ENTRIES = [entry for group in groups() for entry in group.entries]
DIGITS = ["--config", "benchmarks/digits.yml", "pipelines/train/dream_ood.yml"]
HEAVY = ("torch", "numpy", "pandas", "PIL", "sklearn", "matplotlib")


def fresh(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, which says at its end what heavy packages it has imported."""
    code = (
        f"import atexit, sys; atexit.register(lambda: print([n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr))\n"
        "from openood_dream.cli import main; main()"
    )
    run = [sys.executable, "-c", code, *words]
    return subprocess.run(run, capture_output=True, text=True, env={**os.environ, **environment})


def lines(command, *words: object) -> list[str]:
    """What `config` prints."""
    done = command("config", *words)
    assert (done.code, done.err) == (0, [])
    return done.out.splitlines()


# ---------------------------------------------------------------------------------------------------------- completeness


def test_page_is_current():
    """Made without importing trainers, samplers and detectors, it has all of those that importing them registers."""
    text = PAGE.read_text("utf-8")
    assert text == reference.markdown(), f"docs/reference.md is not current; run {REMEDY}"
    done = fresh("config", "--markdown")
    assert done.stdout == text, f"a name lacks in TRAINER_SETTINGS, SAMPLER_SETTINGS or ARGUMENTS; then run {REMEDY}"
    assert done.stderr.splitlines()[-1] == "[]"


def test_every_key_has_type_default_and_description():
    assert [entry.key for entry in ENTRIES if not entry.text.strip() or not entry.kind] == []
    assert [entry.key for entry in ENTRIES if not entry.default and entry.inner is None] == []


def test_names_are_those_that_are_registered():
    names = {choice.word: set(choice.models) for choice in CHOICES}
    assert names["trainer"] == set(TRAINERS) and names["postprocessor"] == set(POSTPROCESSORS)
    assert names["dream.outliers"] == set(SAMPLERS)
    settings = [*((TRAINERS[name].Settings, f"trainer.{name}") for name in TRAINERS)]
    settings += [(POSTPROCESSORS[name].Arguments, f"postprocessor.{name}") for name in POSTPROCESSORS]
    for model, word in settings:
        text = explain([word])
        assert all(f".{field}: " in text for field in model.model_fields if field != "name"), word


def shipped() -> Iterator[tuple[str, object]]:
    for file in sorted(shipped_configs().rglob("*.yml")):
        if file.name != "published.yml":  # numbers, no config
            yield from flat(read(str(file)))


def test_every_key_of_the_shipped_configs_is_explained():
    keys = sorted({key for key, _ in shipped()})
    assert len(keys) > 200 and explain(keys)  # InputError names the first that is not


def test_every_name_in_the_shipped_configs_is_one_that_is_listed():
    known = {entry.key: entry for group in groups() if not group.choice for entry in group.entries}
    for key, value in shipped():
        entry = known.get(key)
        if entry is None or not isinstance(value, str) or "@{" in value:
            continue
        if entry.kind.startswith("one of ") or key in ("pipeline.name", "preprocessor.name"):
            assert value in re.split("[ ,;]+", f"{entry.kind} {entry.text}"), f"{key}: {value}"


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "key, kind, meaning",
    [
        ("dream.outliers.k", "an integer >= 1, default 300", "which nearest neighbour measures the distance"),
        ("seed", "an integer from 0 to 4294967295, default 0", "seed of training"),
        (
            "dream.synthesis.scheduler",
            "one of dpmsolver++, pndm, ddim, euler, lcm, own, default dpmsolver++",
            "sampler",
        ),
        ("network.checkpoint", "a path, or null, default null", "file of the weights"),
        ("optimizer.lr", "a number > 0, required", "learning rate at the start"),
        ("trainer.beta", "a number >= 0, default 1.0", "weight of the outlier loss"),
        ("ood_dataset.nearood.tin.data_dir", "a path, required", "folder that the paths of the list start from"),
    ],
)
def test_key(command, key, kind, meaning):
    shown = lines(command, key)
    at = shown.index(f"{key}: {kind}")
    assert shown[at + 1].startswith(f"    {meaning}")


def test_key_that_depends_on_a_name(command):
    """Without a config it is explained for every name that has it; after a name, for this one alone."""
    shown = lines(command, "postprocessor.postprocessor_args.K")
    assert shown[0] == "with postprocessor.name: knn" and "with postprocessor.name: nnguide" in shown
    assert [line for line in lines(command, "postprocessor.knn.K") if not line.startswith(" ")] == [
        "postprocessor.postprocessor_args.K: an integer >= 1, default 50"
    ]


def test_section_and_its_names(command):
    shown = lines(command, "trainer")
    assert any(line.startswith("trainer.name: one of base, oe, dream_ood,") for line in shown)
    assert any("openood-dream config trainer.NAME" in line and "npos" in line for line in shown)
    assert not any("beta" in line for line in shown)
    npos = lines(command, "trainer.npos")
    assert "trainer.trainer_args.K: an integer >= 1, default 300" in npos and not any("beta" in line for line in npos)
    assert lines(command, "postprocessor.msp")[-1] == "    no keys of its own"


def test_config_decides_and_gives_values(command):
    shown = lines(command, "trainer", *DIGITS, "--dream.outliers.k", "7")
    assert "with trainer.name: dream_ood" in shown and not any("trainer_args" in line for line in shown)
    at = shown.index("trainer.beta: a number >= 0, default 1.0")
    assert shown[at + 2] == "    here: 2.5  # pipelines/train/dream_ood.yml"
    assert lines(command, *DIGITS, "--dream.outliers.k", "7", "--config", "dream.outliers.k")[-1] == (
        "    here: 7  # command line"
    )
    assert lines(command, "dream.outliers.seed", *DIGITS)[-1] == "    here: the default"
    assert lines(command, "dream.outliers.step_size", *DIGITS)[0] == "with dream.outliers.method: boundary"


def test_keys_of_openood_and_of_mappings(command):
    assert lines(command, "network.backbone") == ["network.backbone: OpenOOD alone reads it"]
    assert lines(command, "dataset.train.shuffle") == ["dataset.train.shuffle: OpenOOD alone reads it"]
    assert lines(command, "network.args.channels")[0].startswith("network.args: a mapping of settings")


def test_no_key_and_no_config_lists_the_sections(command):
    shown = lines(command)
    assert {"dream", "trainer", "ood_dataset", "benchmark"} <= {line.partition(":")[0] for line in shown}


@pytest.mark.parametrize(
    "words, near",
    [
        (["dream.outlier.k"], "dream.outliers.k"),
        (["sigma"], "dream.outliers.sigma"),
        (["trainer.npoz"], "trainer.npos"),
        (["dream.outliers", "ood_dataset.nearod"], "ood_dataset.nearood"),
        (["xyzzy"], "sections are dataset, ood_dataset"),
        (["dream.outlier.k", *DIGITS], "dream.outliers.k"),
        (["--markdown", "dream"], "leave the other words out"),
        (["dream", "--seed", "3"], "expected --config"),
    ],
)
def test_bad_words(command, words, near):
    code, out, (line,) = command("config", *words)
    assert code == 2 and out == "" and near in line and line.startswith("openood-dream: error: ")


def test_looking_up_is_light():
    for words in (["dream.outliers"], ["trainer.npos", *DIGITS], DIGITS):
        done = fresh("config", *words)
        assert (done.returncode, done.stderr) == (0, "[]\n") and done.stdout


# ------------------------------------------------------------------------------------------------------------- the help


def commands(group: typer.core.TyperGroup, prefix: str = "") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command with the words that call it."""
    for name, found in group.commands.items():
        yield prefix + name, found
        if hasattr(found, "commands"):
            yield from commands(found, f"{prefix}{name} ")


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_every_command_has_a_guide():
    assert set(GUIDES) == {name for name, found in COMMANDS.items() if not found.hidden}
    takes = {name for name, found in COMMANDS.items() if not found.hidden and found.ignore_unknown_options}
    assert {name for name, (keys, _) in GUIDES.items() if keys} >= takes - {"config"}
    assert all(len(examples) >= 2 for _, examples in GUIDES.values())


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_help(command, name):
    short, long = command(*name.split(), "-h"), command(*name.split(), "--help")
    assert short == long and short.code == 0 and short.out.startswith("Usage: openood-dream")
    keys, examples = GUIDES.get({"sample": "outliers", "synthesize": "imagine"}.get(name, name), ("", ()))
    shown = " ".join(short.out.split())
    assert keys in shown and all(" ".join(f"openood-dream {example}".split()) in shown for example in examples)


@pytest.mark.parametrize("key", sorted({key for keys, _ in GUIDES.values() for key in keys.split(", ") if key}))
def test_keys_of_the_help_are_there(key):
    assert explain([key]).count("\n") >= 2


@pytest.mark.parametrize("example", [example for _, examples in GUIDES.values() for example in examples])
def test_examples_of_the_help(example, command):
    """Their options exist, and so do their files, whose values and overrides are valid."""
    words = shlex.split(example.partition(" > ")[0].replace("\\\n", " "))
    name = next(name for name in sorted(COMMANDS, key=len, reverse=True) if words[: len(name.split())] == name.split())
    context = COMMANDS[name].make_context(name, words[len(name.split()) :])
    if name == "config":
        assert command(*words).code == 0
    elif name == "job":
        at = context.args.index("--method")
        files, overrides = configured(context)
        config = load_config(files, [word for word in overrides if word not in ("--method", context.args[at + 1])])
        assert context.args[at + 1] in config.benchmark.methods
    elif "--config" in words:
        load_config(*configured(context))
    else:
        files, overrides = read_words(context)
        assert files == [] and (not overrides or explain([overrides[0].removeprefix("--")]))


def test_module_is_the_command():
    run = [sys.executable, "-m", "openood_dream"]
    done = subprocess.run([*run, "-h"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Usage: openood-dream ")
    assert subprocess.run([*run, "config", "xyzzy"], capture_output=True).returncode == 2


def test_tab_completes_commands_and_options():
    words = {"_OPENOOD_DREAM_COMPLETE": "complete_bash", "COMP_WORDS": "openood-dream im", "COMP_CWORD": "1"}
    assert fresh(**words).stdout.split() == ["imagine"]
    words |= {"COMP_WORDS": "openood-dream evaluate --ev", "COMP_CWORD": "2"}
    done = fresh(**words)
    assert done.stdout.split() == ["--evaluator"] and done.stderr == "[]\n"
