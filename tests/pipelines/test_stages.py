"""The stages of the imagination by name."""

from __future__ import annotations

import pytest

from openood_dream.datasets import images
from openood_dream.errors import InputError
from openood_dream.pipelines import stages


@pytest.mark.parametrize("name", [name for name in stages.STAGES if name != "inversion"])  # which tiny has not
def test_stage_by_name(dream, tiny, name, monkeypatch):
    expected = getattr(dream, name)
    monkeypatch.setattr(images, "read_image", lambda *args: pytest.fail("decoded an image"))
    artifact = stages.stage(name, [tiny.file])
    assert artifact.reused and artifact.path == expected.path


def test_the_space_is_the_generators_own_where_it_inverts(tiny, dream):
    words = ["--dream.space.method", "inversion", "--dream.space.per_class", "30"]
    words += ["--dream.space.inversion.noises", "1", "--dream.space.inversion.steps", "1"]
    found = stages.stage("space", [tiny.file], words)
    assert found.stage == "inversion" and found.path == tiny.config(*words).imagination.embedded.path


def test_given_pipeline_is_not_trained(tiny, dream):
    with pytest.raises(InputError, match=r"dream\.generator: expected \{train: small\} to train one"):
        stages.stage("generator", [tiny.file], ["--dream.generator", str(dream.generator.path)])


def test_needs_a_dream(tmp_path):
    (tmp_path / "a.yml").write_text("dataset: {name: a, num_classes: 2, pre_size: 8, image_size: 8}")
    with pytest.raises(InputError, match="dream: missing"):
        stages.stage("anchors", [str(tmp_path / "a.yml")])


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_figure_is_a_png(tiny, tmp_path, name):
    with pytest.raises(InputError, match=r"--out: expected a file name that ends in \.png"):
        stages.plot("grid", [tiny.file], [], [], tmp_path / name)
