"""Residuals are what the autoencoder loses of training images, and images get them back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from openood_dream.dream.image_set import read_images
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.residuals import load_residuals, make_residuals, residuals_of
from openood_dream.store.tensors import read_tensors


def test_residuals_are_what_the_autoencoder_loses(dream, tiny):
    settings, train = dream.settings.synthesis, tiny.config().data.images("dataset", "train")
    pipe = load_pipeline(dream.source, settings, "cpu")
    imaginer = Imaginer(pipe, dream.names, settings)
    found = load_residuals(make_residuals(imaginer, dream.source, train, settings, dream.cache_dir))
    assert found.dtype == torch.int16 and found.shape == (min(1024, len(train)), 3, 16, 16)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for place in (0, len(found) - 1):
        image = np.array(train.image(int(order[place])).resize((16, 16), Image.Resampling.BILINEAR))
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            again = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        lost = (image - (again[0].permute(1, 2, 0).numpy() + 1) * 127.5).transpose(2, 0, 1)
        assert np.abs(lost - found[place].numpy()).max() <= 1


def test_image_gets_the_residual_that_its_seed_picks(dream, tiny):
    changed = tiny.config("--dream.synthesis.residual", "true").imagination.images
    assert changed.path != dream.images.path
    (folder,) = (tiny.root / "dream").glob("residuals-*")
    every = read_tensors(folder / "residuals.safetensors")["residuals"].numpy()
    for row in read_images(dream.images.path).itertuples():
        before, after = (
            np.asarray(Image.open(root / row.file)).astype(int) for root in (dream.images.path, changed.path)
        )
        lost = every[row.seed % len(every)].transpose(1, 2, 0)
        assert np.abs((before + lost).clip(0, 255) - after).max() <= 1


def test_residuals_are_shares_of_the_full_range():
    residuals = torch.tensor([-255, 0, 51], dtype=torch.int16).view(3, 1, 1, 1)
    assert residuals_of(residuals, [5, 3, 7]).flatten().tolist() == [torch.tensor(0.2).item(), -1.0, 0.0]
