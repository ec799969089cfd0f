"""A forecast says what is left to draw and how long it takes, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from openood_dream.dream import forecast
from openood_dream.dream.forecast import amount, duration
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.probe import probe


@pytest.fixture
def lines(tiny, monkeypatch) -> Callable[..., dict[str, str]]:
    """The lines of the tiny benchmark's forecast by their first word, for a config with some overrides."""
    monkeypatch.setattr(forecast, "PROBE_SECONDS", 0.1)

    def lines(*overrides: object) -> dict[str, str]:
        text = tiny.config(*map(str, overrides)).imagination.forecast()
        return dict(line.split(maxsplit=1) for line in text.splitlines())

    return lines


def test_how_much_is_left(lines, dream, tiny):
    before = sorted(tiny.root.rglob("*"))
    found = lines("--dream.synthesis.per_class", 7)
    assert sorted(tiny.root.rglob("*")) == before
    assert found["images"] == "42 (6 classes of 7)" and found["shards"] == "5 of 10 images, 0 of them done"
    assert "kB (" in found["disk"] or "bytes" in found["disk"]
    assert "for the 42 images to draw" in found["time"] and "before" not in found


def test_nothing_is_left_of_a_finished_set(lines, dream):
    found = lines()
    assert "3 of them done" in found["shards"] and "0 s for the 0 images" in found["time"]


def test_an_untrained_generator_is_probed_before_anything_is_made(lines, tmp_path):
    found = lines("--dream.cache_dir", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "untrained, whose images take more room" in found["disk"] and "images/s on cpu" in found["time"]
    assert found["before"].startswith("not made yet, and not in the time: ")


def test_a_given_pipeline_is_probed_before_anything_is_made(lines, pipeline_folder, names, tmp_path):
    six = [*names, "image", "quality", "blurry"]
    given = ["--dream.generator", pipeline_folder, "--dream.class_names", six]
    found = lines(*given, "--dream.cache_dir", tmp_path / "none")
    assert "images/s on cpu" in found["time"] and "untrained" not in found["disk"] and "before" in found
    assert not (tmp_path / "none").exists()


def test_the_probe_counts_images_and_bytes(dream):
    settings = dream.settings.synthesis
    imaginer = Imaginer(load_pipeline(dream.source, settings, "cpu"), dream.names, settings)
    found = probe(imaginer, 0.2)
    assert found.batch == 8 and 60 < found.size < 3 * 16 * 16 + 200


@pytest.mark.parametrize("seconds, words", [(0, "0 s"), (59.4, "59.4 s"), (180, "3 min"), (3 * 3600, "3 h")])
def test_times_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("size, words", [(12, "12 bytes"), (1500, "1.5 kB"), (3e12, "3 TB")])
def test_sizes_in_words(size, words):
    assert amount(size) == words
