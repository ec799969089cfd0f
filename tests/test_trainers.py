"""Trainers: what they train, on which batches, with which loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.config import Config, InputError, settings
from openood_dream.trainers import TRAINERS, OutlierTrainer, get_trainer

OWN = {
    "base": {"name": "base"},
    "oe": {"name": "oe", "lambda_oe": 0.5},
    "dream_ood": {"name": "dream_ood", "beta": 1.5},
}


class Batches:
    """A loader of `count` batches of `size` random images in three classes, which notes what was taken from it."""

    def __init__(self, count: int, size: int = 4, label: int | None = None) -> None:
        self.taken = 0
        self.batches = [
            {
                "data": torch.randn(size, 3, 4, 4),
                "label": torch.randint(3, (size,)) if label is None else torch.full((size,), label),
            }
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.taken += 1
            yield batch


class Net(nn.Module):
    """Linear logits, and a record of the batch sizes that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.seen = nn.Linear(48, 3), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return self.fc(x.flatten(1))


def config(name: str, epochs: int = 1, **optimizer) -> Config:
    options = {"num_epochs": epochs, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | optimizer
    return Config(trainer=OWN[name], optimizer=options, precision="float32")


def make(name: str, id_batches: Batches, outliers: Batches | None = None, net: nn.Module | None = None, **options):
    loaders = [id_batches] if outliers is None else [id_batches, outliers]
    return TRAINERS[name](net or Net(), *loaders, config(name, **options))


def test_the_names_of_the_configs_are_registered():
    assert set(OWN) <= set(TRAINERS)
    assert [issubclass(TRAINERS[name], OutlierTrainer) for name in OWN] == [False, True, True]
    assert [TRAINERS[name].auxiliary for name in OWN] == [False, True, True]


def test_every_registered_trainer_has_settings_that_the_config_checks():
    for name in TRAINERS:
        assert settings(Config(trainer={"name": name}), "trainer").name == name


@pytest.mark.parametrize(
    "name, hint", [("dream_od", "did you mean 'dream_ood'"), ("vae", "known are"), (None, "known are")]
)
def test_an_unknown_trainer_is_named_with_the_known_ones(name, hint):
    with pytest.raises(InputError, match=rf"trainer\.name: unknown trainer {name!r}; .*base.*dream_ood.*oe") as caught:
        get_trainer(Config(trainer={"name": name}))
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_one_epoch_moves_every_weight_and_says_its_loss(name):
    trainer = make(name, Batches(3), None if name == "base" else Batches(3, label=-1))
    before = [p.detach().clone() for p in trainer.parameters()]
    net, metrics = trainer.train_epoch(1)
    assert net is trainer.net and metrics["epoch_idx"] == 1 and math.isfinite(metrics["loss"]) and metrics["loss"] > 0
    assert all(not torch.equal(old, new) for old, new in zip(before, trainer.parameters(), strict=True))


@pytest.mark.parametrize("name", OWN)
def test_training_lowers_the_loss(name):
    torch.manual_seed(0)
    trainer = make(name, Batches(3), None if name == "base" else Batches(3, label=-1), epochs=30)
    losses = [trainer.train_epoch(epoch)[1]["loss"] for epoch in range(1, 31)]
    assert losses[-1] < 0.7 * losses[0]


def by_hand(name: str, net: Net, inside: dict, outside: dict | None, phi: nn.Module | None) -> torch.Tensor:
    """The loss of a step as the papers write it, from two passes of the network."""
    logits = net.fc(inside["data"].flatten(1))
    loss = F.cross_entropy(logits, inside["label"])
    if name == "base":
        return loss
    others = net.fc(outside["data"].flatten(1))
    if name == "oe":
        return loss + 0.5 * (others.logsumexp(1) - others.mean(1)).mean()
    energies = torch.cat([logits.logsumexp(1), others.logsumexp(1)])
    known = torch.cat([torch.ones(len(logits)), torch.zeros(len(others))])
    odds = phi(energies[:, None]) @ torch.tensor([-1.0, 1.0])
    return loss + 1.5 * F.binary_cross_entropy_with_logits(odds, known)


@pytest.mark.parametrize("name", OWN)
def test_the_loss_of_a_step_is_the_papers(name):
    inside, outside = Batches(1, size=5), Batches(1, size=3, label=-1)
    trainer = make(name, inside, None if name == "base" else outside)
    batches = [inside.batches[0]] if name == "base" else [inside.batches[0], outside.batches[0]]
    expected = by_hand(name, trainer.net, inside.batches[0], outside.batches[0], getattr(trainer, "phi", None))
    assert trainer.loss(*batches).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_is_sgd_with_nesterov_momentum_and_weight_decay():
    loader, options = Batches(1), {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.01}
    trainer = make("base", loader, **options)
    twin = Net()
    twin.load_state_dict(trainer.net.state_dict())
    batch = loader.batches[0]
    F.cross_entropy(twin(batch["data"]), batch["label"]).backward()
    trainer.train_epoch(1)
    for trained, p in zip(trainer.net.parameters(), twin.parameters(), strict=True):
        gradient = p.grad + 0.01 * p
        assert torch.allclose(trained, p - 0.2 * (gradient + 0.8 * gradient), atol=1e-6)


def test_the_learning_rate_falls_along_a_cosine_per_step_to_almost_nothing():
    trainer = make("base", Batches(5), epochs=2)
    rates = []
    trainer.optimizer.register_step_pre_hook(lambda *args: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.train_epoch(1)
    trainer.train_epoch(2)
    expected = [1e-6 + (0.1 - 1e-6) * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert rates == pytest.approx(expected)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)


@pytest.mark.parametrize("outliers", [1, 2, 3, 7])
def test_an_epoch_is_one_pass_over_id_images_whatever_the_number_of_outliers(outliers):
    inside, outside = Batches(5), Batches(outliers, size=2, label=-1)
    trainer = make("dream_ood", inside, outside)
    trainer.train_epoch(1)
    assert trainer.net.seen == [4 + 2] * 5  # one pass of the network for both
    assert inside.taken == 5 and outside.taken == 5


def test_a_small_set_of_outliers_is_cycled_in_order():
    inside, outside = Batches(5), Batches(2, label=-1)
    trainer = make("oe", inside, outside)
    picked = [pair[1]["data"] for pair in trainer.batches()]
    assert (
        all(torch.equal(image, outside.batches[i % 2]["data"]) for i, image in enumerate(picked)) and len(picked) == 5
    )


def test_phi_is_trained_by_the_optimiser_of_the_network():
    trainer = make("dream_ood", Batches(2), Batches(2, label=-1))
    inside = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in trainer.phi.parameters()} <= inside and {id(p) for p in trainer.net.parameters()} <= inside


def test_outliers_reach_the_network_by_a_gradient():
    """In a public implementation of a similar method they do not."""
    inside, outside = Batches(1), Batches(1, label=-1)
    trainer = make("dream_ood", inside, outside)
    x = outside.batches[0]["data"].requires_grad_()
    trainer.loss(inside.batches[0], outside.batches[0]).backward()
    assert x.grad.abs().sum() > 0


def test_the_label_of_outliers_does_not_matter():
    inside, outside = Batches(1), Batches(1, label=-1)
    for name in ("oe", "dream_ood"):
        trainer = make(name, inside, outside)
        losses = {
            trainer.loss(inside.batches[0], {**outside.batches[0], "label": torch.full((4,), y)}).item()
            for y in (-1, 2)
        }
        assert len(losses) == 1


def test_a_loss_that_is_not_a_number_ends_training_and_says_what_to_do():
    loader = Batches(2)
    loader.batches[1]["data"][0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"epoch 3: the loss is nan; lower optimizer\.lr \(0\.1\)"):
        make("base", loader).train_epoch(3)


def test_an_unknown_setting_of_a_trainer_is_named():
    bad = config("oe")
    bad.trainer = {"name": "oe", "lambda_eo": 0.5}
    with pytest.raises(InputError, match=r"trainer\.lambda_eo: unknown key; did you mean 'lambda_oe'\?"):
        TRAINERS["oe"](Net(), Batches(1), Batches(1), bad)


def test_bfloat16_trains_as_well():
    torch.manual_seed(0)
    half = config("base")
    half.precision = "bfloat16"
    loader, net = Batches(1), Net()
    twin = Net()
    twin.load_state_dict(net.state_dict())
    TRAINERS["base"](net, loader, half).train_epoch(1)
    TRAINERS["base"](twin, loader, config("base")).train_epoch(1)
    assert net.fc.weight.dtype is torch.float32 and torch.allclose(net.fc.weight, twin.fc.weight, atol=0.02)
    assert not torch.equal(net.fc.weight, twin.fc.weight)
