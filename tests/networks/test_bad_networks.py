"""Networks that cannot be: the line that names the key, before anything is written."""

from __future__ import annotations

import pytest
from rows import SPACE, TRAIN, Row, key, rejected

TEST = "evaluate --config {tiny} pipelines/test/test_ood.yml postprocessors/ebo.yml --output_dir {tmp}/new"
TEACHER = f"{TRAIN} --config {{tmp}}/oal.yml"
OAL = {"oal.yml": "trainer: {name: oal, teacher: {network: 'timm:vit_tiny_patch16_224', args: {depth: 1}}}\n"}

ROWS = [
    key("network.name timm:vit_tiny_patch16_224 --network.args null", r"network\.name: "),
    key("network.args '{features_only: true}'", r"network\.args\.features_only: "),
    key("network.args '{drop_rate: 2}'", r"network\.args\.drop_rate: "),
    key("network.args '{global_pool: \"\"}'", r"network\.args\.global_pool: "),
    key("network.args '{in_chans: 1}'", r"network\.args\.in_chans: .*dataset\.channels"),
    key("network.args '{num_classes: 4}'", r"network\.args\.num_classes: "),
    key("network.args '{checkpoint_path: /nope.pth}'", r"network\.args\.checkpoint_path: .*network\.checkpoint"),
    key(
        "network.args '{pretrained: true, channels: null}' --network.name timm:resnet18",
        r"network\.args\.pretrained: .*resnet18.*hf download timm/resnet18",
    ),
    key("network.args '{colour: 3}'", r"network\.args\.colour: "),
    key("network.args '{drop_rate: 2}' --network.checkpoint {tmp}/no.ckpt", r"network\.args\.drop_rate: ", TEST),
    key("dream.space.network_args '{drop_rate: 2}'", r"dream\.space\.network_args\.drop_rate: ", SPACE),
    Row("a teacher that does not fit", TEACHER, r"{tmp}/oal\.yml: trainer\.teacher\.args: ", OAL),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_bad(row, command, tiny, digits, tmp_path):
    rejected(row, command, tiny, digits, tmp_path)
