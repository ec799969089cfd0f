"""Lines lead from a class's plain prompt to its farthest outlier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.imaginer import Imaginer, image_seed, load_pipeline
from openood_dream.dream.lines import STEPS, between, load_lines
from openood_dream.dream.outliers import load_outliers


def test_from_the_plain_prompt_to_the_farthest_outlier(dream):
    every, drawn = load_lines(dream.lines([1, 4], 2))
    anchors, (table, embeddings) = load_anchors(dream.anchors), load_outliers(dream.outliers)
    assert drawn.shape == (2, 2, 1 + STEPS, 3, 16, 16)
    for label, tokens, images in zip((1, 4), every, drawn, strict=True):
        farthest = table[table["class"] == label].sort_values("distance").index[-1]
        assert torch.equal(tokens[0], anchors[label])
        assert torch.equal(tokens[-1], embeddings[torch.tensor([farthest])][0])
        assert torch.equal(images[:, 0], images[:, 1])  # the anchor's image is the plain prompt's, bit for bit
        assert not torch.equal(images[0], images[1])  # another noise
        apart = (images[:, 1:].float() - images[:, 1:2].float()).abs().mean((0, 2, 3, 4))
        assert apart[-1] > 0  # the embedding is used


def test_image_of_a_line_is_drawn_as_any_other(dream):
    tokens, images = load_lines(dream.lines([3], 1))
    settings = dream.settings.synthesis
    imaginer = Imaginer(load_pipeline(dream.source, settings, "cpu"), dream.names, settings)
    for token, place in ((tokens[0, [5]], 6), (None, 0)):
        alone = imaginer(torch.tensor([3]), token, [image_seed(settings.seed, 0)])[0]
        assert (images[0, 0, place].int() - alone.int()).abs().max() <= 1  # alone or in a batch


@pytest.mark.parametrize("ends", [(1.0, 1.0), (0.4, 3.0)])
def test_steps_lie_on_the_line_and_have_the_length_of_its_ends(ends):
    start, end = (length * F.normalize(torch.randn(8), dim=0) for length in ends)
    line = between(start, end, 5)
    assert torch.allclose(line.norm(dim=1), torch.linspace(*ends, 5))
    for share, point in zip((0.25, 0.5, 0.75), line[1:-1], strict=True):
        assert F.cosine_similarity(point, (1 - share) * start + share * end, dim=0) == pytest.approx(1, abs=1e-6)
