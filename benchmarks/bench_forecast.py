"""Whether the time that `imagine --dry-run` says is the time that drawing takes: `pytest benchmarks/bench_forecast.py`.

The forecast and then the whole set, one after the other on the same machine; `off_percent` is what the forecast is off by.
On a machine that does much else in between, both say little.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bench_imagine import NAMES, TEMPLATE, save, small
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from openood_dream.dream.anchors import load_anchors, make_anchors
from openood_dream.dream.forecast import forecast
from openood_dream.dream.images import make_images
from openood_dream.dream.settings import SynthesisSettings
from openood_dream.dream.source import Source, word_tokenizer
from openood_dream.store.artifacts import Artifact
from openood_dream.store.tables import write_table
from openood_dream.store.tensors import write_index, write_tensors

SECONDS = {"s": 1, "min": 60, "h": 3600}
SMALL = {"per_class": 500, "size": 16, "save_size": 16, "batch_size": 100, "guidance": 1.15}
MEDIUM = {"per_class": 4, "size": 128, "save_size": 64, "batch_size": 8}


def medium(folder: Path) -> Path:
    """Stable Diffusion with a third of its channels, random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=128,
    )
    channels = (96, 192, 384, 384)
    unet = UNet2DConditionModel(
        sample_size=16, cross_attention_dim=192, attention_head_dim=8, block_out_channels=channels
    )
    tokenizer = word_tokenizer([*NAMES, TEMPLATE.format("")])
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4)
    return save(folder, vae, unet, tokenizer, CLIPTextModel(text))


def outliers_around(source: Source, folder: Path) -> Artifact:
    """The artifact of an embedding near each anchor."""
    anchors = load_anchors(make_anchors(source, dict.fromkeys(NAMES, TEMPLATE), folder / "dream"))
    made = Artifact(folder / "outliers", {"hash": "", "inputs": {"outliers": {"method": "knn"}}}, False)
    write_tensors(made.path / "all.safetensors", **{"embeddings.0": anchors + 0.02 * torch.randn(anchors.shape)})
    write_index(made.path, "embeddings", [made.path / "all.safetensors"])
    table = pd.DataFrame({"class": np.arange(len(NAMES)), "boundary": 0, "distance": 1.0})
    write_table(made.path / "outliers.parquet", table)
    return made


@pytest.mark.parametrize("make, options", [(small, SMALL), (medium, MEDIUM)], ids=["small", "medium"])
def test_a_forecast_is_what_drawing_takes(benchmark, tmp_path, make, options):
    source = Source(str(make(tmp_path / "pipeline")), None, {"made": "here"})
    settings, outliers = SynthesisSettings(**options), outliers_around(source, tmp_path)
    given = (source, outliers, NAMES, settings, tmp_path / "dream")
    text = forecast(*given, untrained=lambda: pytest.fail("it is there"))
    print(text)
    number, unit = re.search(r"time +([\d.e+]+) (s|min|h) for", text).groups()
    made = benchmark.pedantic(lambda: make_images(*given, keeps_class=False), rounds=1)
    assert made.manifest["images"] == settings.per_class * len(NAMES)
    said, taken = float(number) * SECONDS[unit], made.manifest["seconds"]
    benchmark.extra_info |= {"forecast_seconds": said, "off_percent": round(100 * (said / taken - 1), 1)}
    if made.manifest["images"]:
        benchmark.extra_info["probe"] = text.rpartition("in ")[2]
