"""The registry of detectors and their hyperparameters."""

from __future__ import annotations

import pytest

from openood_dream.config.schema import validated
from openood_dream.config.tree import Origins
from openood_dream.errors import InputError
from openood_dream.postprocessors.known import POSTPROCESSORS, check_fits, find_postprocessor
from openood_dream.postprocessors.settings import PostprocessorSettings

CLASSIFIERS = (
    "ash dice ebo fdbd gen gradnorm klm knn mds mls msp nci nnguide odin openmax react relation residual rmds scale she "
    "temperature_scaling vim vra"
)
GENERATIVE = "frl input_complexity likelihood likelihood_regret likelihood_regret_z"


def settings(name: str, **args) -> PostprocessorSettings:
    return PostprocessorSettings(name=name, postprocessor_args=args)


def test_every_detector_is_registered():
    kinds = {True: [], False: []}
    for name, cls in sorted(POSTPROCESSORS.items()):
        kinds[cls.generative].append(name)
        assert cls.name == name and set(cls.sweep) <= set(cls.Arguments.model_fields)
    assert " ".join(kinds[False]) == CLASSIFIERS and " ".join(kinds[True]) == GENERATIVE


@pytest.mark.parametrize("name", POSTPROCESSORS)
def test_every_detector_names_its_paper(name):
    assert "Source: " in (POSTPROCESSORS[name].__doc__ or "")
    assert all(field.description for field in POSTPROCESSORS[name].Arguments.model_fields.values())


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("knn", {"K": 201}),
        ("knn", {"K": 0}),
        ("knn", {"K": "5"}),
        ("vim", {"dim": 12}),
        ("residual", {"dim": 12}),
        ("nnguide", {"K": 102, "alpha": 0.5}),
        ("odin", {"noise": -1}),
        ("relation", {"pow": 0}),
        ("she", {"metric": "x"}),
        ("react", {"percentile": 150}),
        ("ash", {"percentile": 100}),
        ("ebo", {"temperature": 0}),
        ("fdbd", {"distance_as_normalizer": 1}),
        ("dice", {"p": None}),
    ],
)
def test_impossible_hyperparameters(name, args, fitted):
    with pytest.raises(InputError, match=f"^postprocessor.postprocessor_args.{next(iter(args))}: expected"):
        fitted(name, **args)


def test_the_file_is_named():
    data = {"name": "knn", "postprocessor_args": {"K": 0}}
    origins = Origins()
    origins.set(("postprocessor", "postprocessor_args", "K"), "knn.yml")
    with pytest.raises(InputError, match=r"^knn\.yml: postprocessor\.postprocessor_args\.K: expected"):
        find_postprocessor(validated(PostprocessorSettings, data, ("postprocessor",), origins), None)


def test_misspelt_hyperparameter():
    with pytest.raises(InputError, match=r"postprocessor_args\.temprature: .*'temperature'"):
        find_postprocessor(settings("ebo", temperature=2, temprature=5), None)


def test_hyperparameters_of_other_detectors_are_left_alone():
    assert POSTPROCESSORS["ebo"].arguments(settings("ebo", temperature=2, K=5)).model_dump() == {"temperature": 2}


def test_given_hyperparameters_take_the_place_of_others():
    assert POSTPROCESSORS["knn"].arguments(settings("knn", K=5), K=7).model_dump() == {"K": 7}


def test_unknown_detector():
    with pytest.raises(InputError, match=r"^postprocessor\.name: .*'knnn'.*'knn'.*ash, dice"):
        find_postprocessor(settings("knnn"), None)


@pytest.mark.parametrize(
    "name, network, words", [("frl", "timm:resnet10t", "generative networks"), ("msp", "vae", "classifiers")]
)
def test_network_of_the_other_kind(name, network, words):
    with pytest.raises(InputError, match=rf"^postprocessor\.name: {name} scores {words}, .*'{network}'"):
        find_postprocessor(settings(name), network)
    check_fits(settings(name), None)
    check_fits(settings("of OpenOOD's"), "timm:resnet10t")
