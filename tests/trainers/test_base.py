"""What all trainers share: the registry, batches, the optimiser, and the end of a training that went wrong."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from toys import TINY, Batches, Net, make, options, total

from openood_dream.config.schema import validated
from openood_dream.dream.samplers import SAMPLERS
from openood_dream.errors import InputError
from openood_dream.losses import energy_regularisation
from openood_dream.trainers.base import Logistic, check_auxiliary
from openood_dream.trainers.known import TRAINERS, OutlierTrainer, get_trainer
from openood_dream.trainers.settings import TrainerSettings

WITH_OUTLIERS = ("oe", "dream_ood")


# ---------------------------------------------------------------------------------------------------------- registry


def test_registry():
    assert set(TRAINERS) == {"base", "oe", "dream_ood", "dream_id", "vos", "npos", "oal", "frl"}
    for name, cls in TRAINERS.items():
        assert get_trainer(cls.Settings(name=name)) is cls and cls.name == name
        assert issubclass(cls, OutlierTrainer) == cls.auxiliary == (name in (*WITH_OUTLIERS, "dream_id"))
        assert validated(cls.Settings, {"name": name}).name == name


@pytest.mark.parametrize("name, hint", [("dream_od", "did you mean 'dream_ood'"), ("vae", "known are")])
def test_unknown_trainer(name, hint):
    with pytest.raises(InputError, match=rf"trainer\.name: unknown {name!r}; .*base.*dream_ood.*oe") as caught:
        get_trainer(TrainerSettings(name=name))
    assert hint in str(caught.value)


def test_unknown_setting():
    with pytest.raises(InputError, match=r"trainer\.lambda_eo: unknown key; did you mean 'lambda_oe'\?"):
        options("oe", settings={"lambda_eo": 0.5})


@pytest.mark.parametrize(
    "name, method, fits",
    [
        ("dream_id", "inlier", True),
        ("dream_id", "knn", False),
        ("dream_id", "boundary", False),
        ("dream_ood", "inlier", False),
        ("dream_ood", "boundary", True),
        ("oe", "knn", True),
        ("base", "inlier", True),
    ],
)
def test_imagined_images_of_the_right_kind(name, method, fits):
    def check(imglist: str = "imagined") -> None:
        check_auxiliary(
            TRAINERS[name],
            imglist,
            SAMPLERS[method].keeps_class,
            lambda text: InputError(f"dream.outliers.method: {text}"),
        )

    check("my_images.txt")  # the dream section says nothing of these
    if fits:
        check()
    else:
        with pytest.raises(InputError, match=rf"dream.outliers.method: .*{name} learns from (inliers|outliers)"):
            check()


# ------------------------------------------------------------------------------------------------------------ a step


@pytest.mark.parametrize("name", TINY)
def test_epoch_moves_every_weight(name):
    trainer = make(name, Batches(12), Batches(3, label=-1), epochs=3)
    before = [p.detach().clone() for p in trainer.parameters()]
    trainer.train_epoch(1)  # VOS and NPOS fill their queues
    net, metrics = trainer.train_epoch(2)
    assert net is trainer.net and metrics["epoch_idx"] == 2 and math.isfinite(metrics["loss"])
    assert sum(metrics["terms"].values()) == metrics["loss"]
    assert all(not torch.equal(old, new) for old, new in zip(before, trainer.parameters(), strict=True))


@pytest.mark.parametrize("name", TINY)
def test_training_lowers_the_loss(name):
    torch.manual_seed(0)
    trainer = make(name, Batches(6), Batches(6, label=-1), epochs=30)
    losses = [trainer.train_epoch(epoch)[1]["loss"] for epoch in range(1, 31)]
    first = losses[3] if name in ("vos", "npos") else losses[0]  # in the first epochs these have no outliers
    assert losses[-1] < 0.8 * first


def test_cross_entropy():
    loader = Batches(1, size=5)
    trainer, batch = make("base", loader), loader.batches[0]
    expected = F.cross_entropy(trainer.net(batch["data"]), batch["label"])
    assert total(trainer, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_nesterov_momentum_and_weight_decay():
    loader = Batches(1)
    trainer = make("base", loader, lr=0.2, momentum=0.8, weight_decay=0.01)
    twin = Net()
    twin.load_state_dict(trainer.net.state_dict())
    batch = loader.batches[0]
    F.cross_entropy(twin(batch["data"]), batch["label"]).backward()
    trainer.train_epoch(1)
    for trained, p in zip(trainer.net.parameters(), twin.parameters(), strict=True):
        gradient = p.grad + 0.01 * p
        assert torch.allclose(trained, p - 0.2 * (gradient + 0.8 * gradient), atol=1e-6)


def test_cosine_schedule_per_step():
    trainer = make("base", Batches(5), epochs=2)
    rates = []
    trainer.optimizer.register_step_pre_hook(lambda *args: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.train_epoch(1)
    trainer.train_epoch(2)
    expected = [1e-6 + (0.1 - 1e-6) * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates == pytest.approx(expected)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)


def test_gradient_clipping():
    trainer = make("dream_ood", Batches(1), Batches(1, label=-1), clip_norm=0.01, momentum=0.5)
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *args: norms.append(torch.cat([p.grad.flatten() for p in trainer.parameters()]).norm().item())
    )
    trainer.train_epoch(1)
    assert norms == pytest.approx([0.01], rel=1e-3)


def test_bfloat16():
    torch.manual_seed(0)
    loader, net, twin = Batches(1), Net(), Net()
    twin.load_state_dict(net.state_dict())
    make("base", loader, net=net, precision="bfloat16").train_epoch(1)
    make("base", loader, net=twin).train_epoch(1)
    assert net.fc.weight.dtype is torch.float32 and torch.allclose(net.fc.weight, twin.fc.weight, atol=0.05)
    assert not torch.equal(net.fc.weight, twin.fc.weight)


# ---------------------------------------------------------------------------------------------------------- outliers


@pytest.mark.parametrize("outliers", [1, 2, 3, 7])
def test_epoch_is_one_pass_over_id_images(outliers):
    id_loader, outlier_loader = Batches(5), Batches(outliers, size=2, label=-1)
    trainer = make("dream_ood", id_loader, outlier_loader)
    trainer.train_epoch(1)
    assert trainer.net.seen == [4 + 2] * 5  # one pass of the network for both
    assert id_loader.taken == 5 and outlier_loader.taken == 5


@pytest.mark.parametrize("images, remarks", [(2, 1), (3, 0)])
def test_fewer_outliers_than_classes_are_remarked(images, remarks):
    rows = [{"data": torch.randn(3, 4, 4), "label": -1}] * images
    trainer = make("dream_ood", Batches(1), DataLoader(rows, batch_size=images))
    trainer.train_epoch(1)
    found = trainer.remarks()
    assert len(found) == remarks and all("learned from 2 outliers, fewer than the 3 classes" in text for text in found)


@pytest.mark.parametrize("batches, key", [((0, 1), "train"), ((1, 0), "oe")])
def test_loader_without_a_batch(batches, key):
    with pytest.raises(InputError, match=rf"^dataset\.{key}\.batch_size: "):
        TRAINERS["oe"](Net(), *map(Batches, batches), **options("oe"))


def test_few_outliers_are_cycled_in_order():
    outlier_loader = Batches(2, label=-1)
    picked = [pair[1]["data"] for pair in make("oe", Batches(5), outlier_loader).batches()]
    assert len(picked) == 5
    assert all(torch.equal(images, outlier_loader.batches[i % 2]["data"]) for i, images in enumerate(picked))


@pytest.mark.parametrize("name", WITH_OUTLIERS)
def test_outlier_labels_do_not_matter(name):
    id_loader, outlier_loader = Batches(1), Batches(1, label=-1)
    trainer = make(name, id_loader, outlier_loader)
    labelled = [{**outlier_loader.batches[0], "label": torch.full((4,), y)} for y in (-1, 2)]
    assert len({total(trainer, id_loader.batches[0], batch).item() for batch in labelled}) == 1


def test_logistic_orders_energies():
    """Features that begin with outliers on the wrong side end on the right one; a free phi follows them instead."""
    energies = torch.nn.Parameter(torch.tensor([0.0, 0.0, 2.0, 2.0]))  # two of ID, two of outliers
    phi = Logistic()
    optimizer = torch.optim.SGD([energies, *phi.parameters()], 0.1, momentum=0.9)
    for _ in range(500):
        loss = energy_regularisation(energies[:2, None], energies[2:, None], phi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        phi.hold()
    assert energies[:2].min() > energies[2:].max() and loss < 0.1


# ------------------------------------------------------------------------------------------------- errors, and states


def test_loss_that_is_not_finite():
    id_loader, outlier_loader = Batches(120), Batches(120, label=-1)
    outlier_loader.batches[2]["data"][0, 0, 0, 0] = math.nan
    trainer = make("oe", id_loader, outlier_loader)
    with pytest.raises(
        FloatingPointError, match=r"epoch 3, step 3: .*cross-entropy \d\S*, outliers nan.*optimizer\.lr"
    ):
        trainer.train_epoch(3)
    assert len(trainer.net.seen) == 50  # when the device is asked


def test_last_loss_that_is_not_finite():
    loader = Batches(2)
    loader.batches[1]["data"][0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 2: .*cross-entropy nan"):
        make("base", loader).train_epoch(1)


@pytest.mark.parametrize("name", TINY)
def test_state_dict_goes_on(name):
    torch.manual_seed(0)
    loader, outliers = Batches(12), Batches(2, label=-1)
    one = make(name, loader, outliers, epochs=4)
    one.train_epoch(1)
    state, random = copy.deepcopy(one.state_dict()), torch.get_rng_state()
    one.train_epoch(2)
    other = make(name, loader, outliers, epochs=4)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    other.train_epoch(2)
    for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(a, b)
