"""Every stage and trainer on a CUDA GPU, against the CPU; `make gpu` runs them where there is one."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from small_generative import network
from toys import Batches, Net, options

from openood_dream.config.schema import validated
from openood_dream.datasets.images import loader, placed
from openood_dream.datasets.settings import OptimizerSettings
from openood_dream.device import copied, enough_memory, pick_device, pick_dtype
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.autoencoder import rebuilt
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.inversion import Inverter
from openood_dream.dream.inversion_settings import InversionSettings
from openood_dream.dream.residuals import lost
from openood_dream.dream.space import load_encoder, load_space, unit_embeddings
from openood_dream.errors import InputError, InputWarning
from openood_dream.evaluators.passes import TEST, Passes
from openood_dream.networks.timm_network import TimmNetwork
from openood_dream.pipelines.benchmark import benchmark
from openood_dream.postprocessors.base import Postprocessor
from openood_dream.sampling.knn import Index, knn_distance, sample_outliers
from openood_dream.trainers.known import TRAINERS, BaseTrainer
from openood_dream.trainers.settings import FRL

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
AUXILIARY = {"oe", "dream_ood", "dream_id"}
METHODS = ("base", "oe", "dream_ood", "dream_id", "vos", "npos")


# ------------------------------------------------------------------------------------------------------------ the whole


@pytest.mark.parametrize(
    "more", [[], ["--dream.outliers.neighbours", "all", "--precision", "bfloat16"]], ids=["", "all"]
)
def test_a_benchmark_with_its_imagination(tiny, tmp_path, more):
    report = benchmark([tiny.file], ["--root", str(tmp_path / "out"), "--device", "cuda", *more], seeds=1)
    table = pd.read_csv(report.with_name("leaderboard.csv"))
    assert len(table) == 9 and table.near_auroc.between(0, 100).all() and table.id_acc.between(0, 100).all()
    assert "cuda (" in report.read_text(encoding="utf-8")


TEACHER = "{network: 'timm:resnet10t', args: {channels: [8, 8, 8, 8], pretrained: false}, epochs: 1}"
SIZES = {  # queues that the tiny benchmark fills
    "vos": "trainer: {sample_number: 64, start_epoch: 2}",
    "npos": (
        "trainer: {trainer_args: {sample_number: 64, start_epoch_KNN: 2, K: 5, select: 8, pick_nums: 2, ID_points_num: 5, "
        "sample_from: 20}}"
    ),
    "oal": f"trainer: {{name: oal, teacher: {TEACHER}}}",
    "dream_id": "",
}


@pytest.mark.parametrize("method", SIZES)
def test_the_other_methods(tiny, tmp_path, method):
    sizes, layer = tmp_path / "sizes.yml", tmp_path / "method.yml"
    sizes.write_text(f"dataset: {{train: {{batch_size: 64}}}}\noptimizer: {{num_epochs: 3}}\n{SIZES[method]}\n")
    shipped = {"oal": [], "dream_id": ["pipelines/train/dream_id.yml", "preprocessors/dream.yml"]}
    files = [*shipped.get(method, [f"pipelines/train/{method}.yml"]), str(sizes)]
    layer.write_text(f"benchmark: {{methods: {{{method}: {files}}}}}\n")
    words = ["--root", str(tmp_path / "out"), "--device", "cuda"]
    report = benchmark([tiny.file, str(layer)], words, methods=[method], seeds=1)
    assert pd.read_csv(report.with_name("leaderboard.csv")).near_auroc.between(0, 100).all()


# ------------------------------------------------------------------------------------------------------------ trainers


def trainer(name: str, device: torch.device, loaders: list) -> BaseTrainer:
    torch.manual_seed(0)
    net = Net().to(device)
    return TRAINERS[name](net, *loaders, **options(name, epochs=3))


def batches(name: str) -> list[Batches]:
    torch.manual_seed(1)
    other = Batches(12, label=None if name == "dream_id" else -1)
    return [Batches(12), other] if name in AUXILIARY else [Batches(12)]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_of_the_cpu(name):
    found = {}
    for device in (CPU, GPU):
        loaders = batches(name)
        made = trainer(name, device, loaders)
        made.epoch = 2
        torch.manual_seed(2)
        terms = [made.step(*step) for step in zip(*loaders)]
        found[device.type] = {key: [row[key].item() for row in terms if key in row] for key in terms[-1]}
    assert found["cuda"].keys() == found["cpu"].keys()
    for key, values in found["cpu"].items():
        assert found["cuda"][key] == pytest.approx(values, rel=2e-3, abs=2e-3), key


@pytest.mark.parametrize("name", [name for name in METHODS if name != "npos"])
def test_no_step_waits_for_the_gpu(name):
    loaders = batches(name)
    made = trainer(name, GPU, loaders)
    made.epoch = 2
    steps = list(zip(*loaders))
    for step in steps[:6]:  # queues fill
        made.step(*step)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps[6:]:
            made.step(*step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_npos_waits_a_few_times_a_step():
    (loaded,) = batches("npos")
    made = trainer("npos", GPU, [loaded])
    made.epoch = 2
    steps = list(zip(loaded))
    for step in steps[:8]:
        made.step(*step)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            made.step(*steps[8])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    print("npos waits", len([one for one in seen if "synchroniz" in str(one.message)]), "times in a step")
    assert len(seen) <= 12


@pytest.mark.parametrize("kind", ["vae", "glow", "pixelcnnpp"])
def test_generative_networks(kind):
    settings = FRL(name="frl", frequency=True)
    choice = OptimizerSettings(name="adam", num_epochs=1, lr=1e-3, momentum=0.9, weight_decay=0.0)
    net = network(kind, frequency=True).to(GPU)
    data = [{"data": torch.randn(4, 3, net.size, net.size), "label": torch.zeros(4, dtype=torch.long)}]
    made = TRAINERS["frl"](net, data, settings=settings, optimizer=choice, precision="float32")
    _, metrics = made.train_epoch(1)
    assert np.isfinite(metrics["loss"])


def test_batches_are_made_on_the_gpu(tiny):
    images = tiny.config().data.images("dataset", "train").augmented()
    found = []
    for device in (CPU, GPU):
        torch.manual_seed(3)
        made = placed(loader(images, 32, shuffle=True), device)
        found.append(list(made))
    for cpu, gpu in zip(*found, strict=True):
        assert gpu["data"].device.type == "cuda" and gpu["image_name"] == cpu["image_name"]
        torch.testing.assert_close(gpu["data"].cpu(), cpu["data"], rtol=0, atol=1e-6)
        assert torch.equal(gpu["label"].cpu(), cpu["label"])


# ------------------------------------------------------------------------------------------------------ the imagination


def test_outliers_are_those_of_the_cpu(dream):
    space = load_space(dream.space)
    z = space["embeddings"][space["labels"] == 0]
    arguments = {"k": 5, "sigma": 0.15, "select": 10, "n_boundary": 5, "n_draws": 50, "keep": 2, "rounds": 2}
    cpu = sample_outliers(z, **arguments)
    gpu = sample_outliers(z.to(GPU), **arguments)
    torch.testing.assert_close(gpu["distance"].cpu(), cpu["distance"], rtol=1e-4, atol=1e-5)
    index = Index.of(space["embeddings"], GPU)
    far = knn_distance(z.to(GPU), index, 5)
    torch.testing.assert_close(far.cpu(), knn_distance(z, space["embeddings"], 5), rtol=1e-4, atol=1e-5)


def test_the_space_is_that_of_the_cpu(dream, tiny):
    experiment = tiny.config()
    images = experiment.data.images("dataset", "val")
    encoder = load_encoder(dream.space, experiment.dream.space, load_anchors(dream.anchors).shape[1], 16)
    rows = [unit_embeddings(encoder, loader(images, 50, shuffle=False), device) for device in (CPU, GPU)]
    torch.testing.assert_close(rows[1], rows[0], rtol=0, atol=2e-3)


def test_inversions_are_those_of_the_cpu(dream):
    images, labels, found = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([0, 3, 5]), []
    for device in ("cpu", "cuda"):
        settings = dream.settings.synthesis.model_copy(update={"dtype": "float32"})
        imaginer = Imaginer(load_pipeline(dream.source, settings, device), dream.names, settings)
        found.append(Inverter(imaginer, InversionSettings(noises=4, lr=0.1))(images, labels, [1, 2, 3]))
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-4)  # the losses
    assert (found[0][0] * found[1][0]).sum(1).min() > 0.98


def test_what_the_autoencoder_gives_back_is_that_of_the_cpu(dream):
    images, settings = torch.rand(3, 3, 16, 16) * 2 - 1, dream.settings.synthesis
    cpu, gpu = (rebuilt(load_pipeline(dream.source, settings, device), images).cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu, cpu, rtol=0, atol=2e-2)


def drawn(dream, device: str, dtype: str, labels: list[int], tokens: torch.Tensor) -> torch.Tensor:
    settings = dream.settings.synthesis.model_copy(update={"dtype": dtype})
    imaginer = Imaginer(load_pipeline(dream.source, settings, device), dream.names, settings)
    return imaginer(torch.tensor(labels), tokens, [7 + i for i in range(len(labels))])


@pytest.mark.parametrize("dtype, most", [("float32", 3), ("bfloat16", 60), ("float16", 20)])
def test_images_are_those_of_the_cpu(dream, dtype, most):
    tokens = load_anchors(dream.anchors)[[0, 3, 5]]
    cpu, gpu = (drawn(dream, device, kind, [0, 3, 5], tokens) for device, kind in (("cpu", "float32"), ("cuda", dtype)))
    assert (cpu.int() - gpu.int()).abs().float().quantile(0.99) <= most


def test_a_decoder_that_overflows_in_half_precision(dream):
    """The autoencoder computes in float32: numbers beyond 65504 on its way, which a norm takes back, are no harm."""
    settings = dream.settings.synthesis.model_copy(update={"dtype": "float16"})
    pipeline, largest = load_pipeline(dream.source, settings, "cuda"), []
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight.mul_(1e6)
    pipeline.vae.decoder.conv_in.register_forward_hook(lambda *given: largest.append(given[2].abs().max().item()))
    pixels = Imaginer(pipeline, dream.names, settings)(
        torch.tensor([0, 1]), load_anchors(dream.anchors)[[0, 1]], [1, 2]
    )
    assert pixels.dtype == torch.uint8 and max(largest) > 65504


@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_offload_draws_the_same_images(dream, offload, dtype):
    tokens, seeds = load_anchors(dream.anchors)[[0, 3, 5]], [7, 8, 9]
    settings = dream.settings.synthesis.model_copy(update={"dtype": dtype})
    away = settings.model_copy(update={"offload": offload})
    found = []
    for own in (settings, away):
        imaginer = Imaginer(load_pipeline(dream.source, own, "cuda"), dream.names, own)
        for given in (tokens, None):
            found.append(imaginer(torch.tensor([0, 3, 5]), given, seeds).int())
        found.append(
            (255 * lost(imaginer.pipeline, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))).int()
        )
    for here, offloaded in zip(found[:3], found[3:], strict=True):
        assert (here - offloaded).abs().max() <= 2
    assert {p.device.type for p in imaginer.pipeline.unet.parameters()} <= {"cpu", "meta"}


def test_batches_are_halved_until_they_fit_a_gpu(dream):
    """Of a GPU whose memory is nearly full."""
    settings = dream.settings.synthesis.model_copy(update={"dtype": "float32"})
    labels = torch.arange(64) % 6
    tokens, seeds = load_anchors(dream.anchors)[labels], list(range(64))
    imaginer = Imaginer(load_pipeline(dream.source, settings, "cuda"), dream.names, settings)
    whole = imaginer(labels, tokens, seeds)
    torch.cuda.reset_peak_memory_stats()
    imaginer(labels[:16], tokens[:16], seeds[:16])
    quarter = torch.cuda.max_memory_allocated()
    imaginer.pipeline.unet.to("cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.3 * quarter / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.warns(InputWarning, match="64 images .* do not fit into the memory of the GPU"):
            again = imaginer(labels, tokens, seeds)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (whole.int() - again.int()).abs().max() <= 3


# --------------------------------------------------------------------------------------------------------- evaluation


def test_passes_are_those_of_the_cpu(tiny):
    torch.manual_seed(0)
    net, data = TimmNetwork("resnet10t", 6, small=True, args={"channels": [8, 8, 16, 16]}).eval(), tiny.config().data
    found = [Passes(net, data, device, network={}).of(TEST, Postprocessor) for device in (CPU, GPU)]
    torch.testing.assert_close(found[1].logits, found[0].logits, rtol=2e-3, atol=2e-3)


# --------------------------------------------------------------------------------------------------------------- memory


def test_what_does_not_fit_is_one_line(tiny):
    settings = tiny.config().dream.synthesis
    with pytest.raises(
        InputError, match=r"dream\.synthesis\.batch_size: 32 images do not fit into the memory of a GPU"
    ):
        with enough_memory(lambda text: settings.error("batch_size", text), "32 images"):
            torch.empty(1 << 44, device=GPU)


def test_words_for_the_device():
    assert pick_device("auto").type == "cuda" and pick_dtype("auto", GPU) is torch.bfloat16
    assert copied(torch.ones(3), GPU).device.type == "cuda"
    assert validated(FRL, {"name": "frl", "frequency": True}, ("trainer",)).frequency
