"""Trainers: what they train, on which batches, with which loss."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openood_dream.config import Config, InputError, settings
from openood_dream.losses import energy_regularisation
from openood_dream.trainers import TRAINERS, OutlierTrainer, get_trainer
from openood_dream.trainers.base import Logistic
from openood_dream.trainers.queue import ClassQueue
from openood_dream.trainers.vos import Gaussians

OWN = {
    "base": {"name": "base"},
    "oe": {"name": "oe", "lambda_oe": 0.5},
    "dream_ood": {"name": "dream_ood", "beta": 1.5},
    "vos": {"name": "vos", "sample_number": 8, "sample_from": 50, "start_epoch": 2},
    "npos": {
        "name": "npos",
        "trainer_args": {
            "sample_number": 8,
            "sample_from": 20,
            "K": 3,
            "select": 4,
            "pick_nums": 2,
            "ID_points_num": 5,
            "start_epoch_KNN": 2,
        },
    },
}
WITH_OUTLIERS = ("oe", "dream_ood")


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
    """Linear features and logits, and a record of the batch sizes that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.fc, self.seen = nn.Linear(48, 5), nn.Linear(5, 3), []

    def forward(self, x: torch.Tensor, return_feature: bool = False):
        self.seen.append(len(x))
        feature = self.backbone(x.flatten(1))
        return (self.fc(feature), feature) if return_feature else self.fc(feature)

    def get_fc_layer(self) -> nn.Linear:
        return self.fc


def config(name: str, epochs: int = 1, **optimizer) -> Config:
    options = {"num_epochs": epochs, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0} | optimizer
    return Config(trainer=OWN[name], optimizer=options, precision="float32")


def make(name: str, id_batches: Batches, outliers: Batches | None = None, net: nn.Module | None = None, **options):
    loaders = [id_batches, outliers or Batches(1, label=-1)] if TRAINERS[name].auxiliary else [id_batches]
    return TRAINERS[name](net or Net(), *loaders, config(name, **options))


def test_the_names_of_the_configs_are_registered():
    assert set(OWN) <= set(TRAINERS)
    for name in OWN:
        assert issubclass(TRAINERS[name], OutlierTrainer) == TRAINERS[name].auxiliary == (name in WITH_OUTLIERS)


def test_every_registered_trainer_has_settings_that_the_config_checks():
    for name in TRAINERS:
        assert settings(Config(trainer={"name": name}), "trainer").name == name


@pytest.mark.parametrize(
    "name, hint", [("dream_od", "did you mean 'dream_ood'"), ("vae", "known are"), (None, "known are")]
)
def test_an_unknown_trainer_is_named_with_the_known_ones(name, hint):
    with pytest.raises(InputError, match=rf"trainer\.name: unknown {name!r}; .*base.*dream_ood.*oe") as caught:
        get_trainer(Config(trainer={"name": name}))
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", OWN)
def test_one_epoch_moves_every_weight_and_says_its_loss(name):
    trainer = make(name, Batches(12), Batches(3, label=-1), epochs=3)
    before = [p.detach().clone() for p in trainer.parameters()]
    trainer.train_epoch(1)  # VOS and NPOS fill their queues
    net, metrics = trainer.train_epoch(2)
    assert net is trainer.net and metrics["epoch_idx"] == 2 and math.isfinite(metrics["loss"])
    assert sum(metrics["terms"].values()) == metrics["loss"]
    assert all(not torch.equal(old, new) for old, new in zip(before, trainer.parameters(), strict=True))


@pytest.mark.parametrize("name", OWN)
def test_training_lowers_the_loss(name):
    torch.manual_seed(0)
    trainer = make(name, Batches(6), Batches(6, label=-1), epochs=30)
    losses = [trainer.train_epoch(epoch)[1]["loss"] for epoch in range(1, 31)]
    first = losses[3] if name in ("vos", "npos") else losses[0]  # in the first epochs these have no outliers
    assert losses[-1] < 0.8 * first


def by_hand(name: str, net: Net, inside: dict, outside: dict | None, phi: nn.Module | None) -> torch.Tensor:
    """The loss of a step as the papers write it, from two passes of the network."""
    logits = net(inside["data"])
    loss = F.cross_entropy(logits, inside["label"])
    if name == "base":
        return loss
    others = net(outside["data"])
    if name == "oe":
        return loss + 0.5 * (others.logsumexp(1) - others.mean(1)).mean()
    energies = torch.cat([logits.logsumexp(1), others.logsumexp(1)])
    known = torch.cat([torch.ones(len(logits)), torch.zeros(len(others))])
    odds = phi(energies[:, None]) @ torch.tensor([-1.0, 1.0])
    return loss + 1.5 * F.binary_cross_entropy_with_logits(odds, known)


def loss(trainer, *batches) -> torch.Tensor:
    return sum(trainer.terms(*batches).values())


@pytest.mark.parametrize("name", ["base", *WITH_OUTLIERS])
def test_the_loss_of_a_step_is_the_papers(name):
    inside, outside = Batches(1, size=5), Batches(1, size=3, label=-1)
    trainer = make(name, inside, outside)
    batches = [inside.batches[0]] if name == "base" else [inside.batches[0], outside.batches[0]]
    phi = trainer.extra["phi"] if name == "dream_ood" else None
    expected = by_hand(name, trainer.net, inside.batches[0], outside.batches[0], phi)
    assert loss(trainer, *batches).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dream_ood_with_the_loss_of_outlier_exposure_is_outlier_exposure():
    inside, outside, net = Batches(1), Batches(1, label=-1), Net()
    options = config("dream_ood")
    options.trainer = {"name": "dream_ood", "beta": 0.5, "loss": "oe"}
    ours = TRAINERS["dream_ood"](net, inside, outside, options)
    batches = inside.batches[0], outside.batches[0]
    assert loss(ours, *batches).item() == pytest.approx(loss(make("oe", inside, outside, net), *batches).item())


def test_outliers_as_a_class_of_their_own_are_one_more_class_of_the_cross_entropy():
    inside, outside = Batches(1, size=5), Batches(1, size=3, label=-1)
    options = config("dream_ood")
    options.trainer = {"name": "dream_ood", "beta": 0.4, "loss": "extra_class"}
    trainer = TRAINERS["dream_ood"](Net(), inside, outside, options)
    x, y = inside.batches[0]["data"], inside.batches[0]["label"]
    known, others = (torch.cat([trainer.net(x), torch.zeros(len(x), 1)], 1) for x in (x, outside.batches[0]["data"]))
    expected = F.cross_entropy(known, y) + 0.4 * F.cross_entropy(others, torch.full((3,), 3))
    assert loss(trainer, inside.batches[0], outside.batches[0]).item() == pytest.approx(expected.item(), rel=1e-5)


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
    assert {id(p) for p in trainer.extra["phi"].parameters()} <= inside and {
        id(p) for p in trainer.net.parameters()
    } <= inside


def test_phi_never_turns_the_energies_round():
    trainer = make("dream_ood", Batches(1), Batches(1, label=-1))
    phi = trainer.extra["phi"]
    with torch.no_grad():
        phi.weight.copy_(torch.tensor([[3.0], [-1.0]]))
    trainer.train_epoch(1)
    outlier, inside = phi.weight[:, 0].tolist()
    assert inside - outlier == pytest.approx(1.0)
    before = torch.tensor([[-0.2], [2.0]])  # rises enough, so it stays
    with torch.no_grad():
        phi.weight.copy_(before)
    phi.hold()
    assert torch.equal(phi.weight, before)


def test_phi_held_at_its_least_slope_still_orders_energies():
    """Features that begin with outliers on the wrong side end on the right one; a free phi follows them instead."""
    energies = nn.Parameter(torch.tensor([0.0, 0.0, 2.0, 2.0]))  # two of ID, two of outliers
    phi = Logistic()
    optimizer = torch.optim.SGD([energies, *phi.parameters()], 0.1, momentum=0.9)
    for _ in range(500):
        loss = energy_regularisation(energies[:2, None], energies[2:, None], phi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        phi.hold()
    assert energies[:2].min() > energies[2:].max() and loss < 0.1


def test_outliers_reach_the_network_by_a_gradient():
    """In a public implementation of a similar method they do not."""
    inside, outside = Batches(1), Batches(1, label=-1)
    trainer = make("dream_ood", inside, outside)
    x = outside.batches[0]["data"].requires_grad_()
    loss(trainer, inside.batches[0], outside.batches[0]).backward()
    assert x.grad.abs().sum() > 0


def test_the_label_of_outliers_does_not_matter():
    inside, outside = Batches(1), Batches(1, label=-1)
    for name in ("oe", "dream_ood"):
        trainer = make(name, inside, outside)
        found = {
            loss(trainer, inside.batches[0], {**outside.batches[0], "label": torch.full((4,), y)}).item()
            for y in (-1, 2)
        }
        assert len(found) == 1


def test_a_loss_that_is_not_a_number_ends_training_at_its_step_and_names_its_terms():
    inside, outside = Batches(5), Batches(5, label=-1)
    outside.batches[2]["data"][0, 0, 0, 0] = math.nan
    trainer = make("oe", inside, outside)
    with pytest.raises(
        FloatingPointError,
        match=r"epoch 3, step 3: the loss is not finite \(cross-entropy \d\S*, outliers nan\); lower optimizer\.lr \(0\.1\)",
    ):
        trainer.train_epoch(3)
    assert len(trainer.net.seen) == 4  # a step later at most


def test_a_loss_that_is_not_a_number_in_the_last_step_is_found_too():
    loader = Batches(2)
    loader.batches[1]["data"][0, 0, 0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 2: the loss is not finite \(cross-entropy nan\)"):
        make("base", loader).train_epoch(1)


def test_the_gradient_is_clipped_to_the_norm_that_is_asked_for():
    loader = Batches(1)
    trainer = make("dream_ood", loader, Batches(1, label=-1), clip_norm=0.01, momentum=0.5)
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *args: norms.append(torch.cat([p.grad.flatten() for p in trainer.parameters()]).norm().item())
    )
    trainer.train_epoch(1)
    assert norms == pytest.approx([0.01], rel=1e-3)


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
    assert net.fc.weight.dtype is torch.float32 and torch.allclose(net.fc.weight, twin.fc.weight, atol=0.05)
    assert not torch.equal(net.fc.weight, twin.fc.weight)


# ------------------------------------------------------------------------------- what public implementations got wrong


def filled(name: str):
    """A trainer whose queue is full, in an epoch with outliers, and its loader."""
    loader = Batches(12)
    trainer = make(name, loader, epochs=5)
    trainer.train_epoch(1)
    assert trainer.extra["queue"].full()
    trainer.epoch = 2
    return trainer, loader


@pytest.mark.parametrize("name", ["vos", "npos"])
def test_the_loss_on_outliers_moves_the_backbone(name):
    """In OpenOOD's VOS energies pass through Python lists, and no gradient reaches the network."""
    trainer, loader = filled(name)
    trainer.optimizer.zero_grad()
    trainer.terms(loader.batches[0])["outliers"].backward()
    assert trainer.net.backbone.weight.grad.abs().sum() > 0


def test_what_tells_outliers_apart_is_learned_from_step_to_step():
    """OpenOOD's VOS makes a new random layer in every call."""
    for name, part in (("vos", "phi"), ("vos", "weights"), ("npos", "detector")):
        trainer, loader = filled(name)
        trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in trainer.extra[part].parameters()} <= trained
        before = [p.detach().clone() for p in trainer.extra[part].parameters()]
        trainer.step(loader.batches[0])
        after = [p.detach().clone() for p in trainer.extra[part].parameters()]
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_npos_keeps_the_far_candidates(monkeypatch):
    """Two public implementations mix up the axes and in effect keep random ones."""
    trainer, loader = filled("npos")
    a, z = trainer.settings.trainer_args, trainer.extra["queue"].rows[0].clone()
    given = {}
    monkeypatch.setattr(torch, "randn", lambda *shape, draw=torch.randn: given.setdefault("draws", draw(*shape)))
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))
    found = trainer.outliers()
    gaps = torch.cdist(z, z).sort(1).values
    edge = gaps[:, a.K - 1].sort(descending=True, stable=True).indices[: a.pick_nums]
    expected = []
    for point in edge:
        candidates = F.normalize(z[point] + a.cov_mat * given["draws"], dim=1)
        far = torch.cdist(candidates, z).sort(1).values[:, a.K - 1].topk(a.ID_points_num).indices
        expected.append(candidates[far])
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


def test_npos_finds_outliers_of_one_class_in_each_step_and_keeps_the_others():
    trainer, loader = filled("npos")
    for step in range(1, 5):
        before = trainer.extra["outliers"].rows.clone()
        count = len(trainer.outliers())
        changed = (trainer.extra["outliers"].rows != before).any(2).any(1)
        assert count == min(step, 3) * 10 and changed.tolist() == [(step - 1) % 3 == c for c in range(3)]


def test_vos_and_npos_begin_at_their_epoch():
    for name in ("vos", "npos"):
        trainer, loader = filled(name)
        assert "outliers" in trainer.terms(loader.batches[0])
        trainer.epoch = 1
        assert "outliers" not in trainer.terms(loader.batches[0])


# --------------------------------------------------------------------------------------------------------------- queues


def test_a_queue_holds_the_newest_features_of_each_class():
    queue, kept = ClassQueue(3, 4, 2), {0: [], 1: [], 2: []}
    assert not queue.full()
    for _ in range(20):
        features, labels = torch.randn(4, 2), torch.randint(3, (4,))
        queue.push(features, labels)
        for z, y in zip(features, labels.tolist()):
            kept[y] = [*kept[y], z][-4:]
    assert queue.full()
    for label, rows in kept.items():
        held = {tuple(row.tolist()) for row in queue.rows[label]}
        assert held == {tuple(row.tolist()) for row in rows}


def test_a_batch_larger_than_a_queue_is_refused():
    with pytest.raises(InputError, match="sample_number: 4 features of a class for batches of 5; raise it"):
        ClassQueue(3, 4, 2).push(torch.randn(5, 2), torch.zeros(5, dtype=torch.long))


def test_means_and_covariance_follow_the_queue():
    queue = Gaussians(3, 6, 4, torch.float64)
    for _ in range(40):
        queue.push(torch.randn(5, 4) + 2, torch.randint(3, (5,)))
    assert queue.full()
    rows = queue.rows.double()
    centred = (rows - rows.mean(1, keepdim=True)).flatten(0, 1)
    assert torch.allclose(queue.means(), rows.mean(1), atol=1e-9)
    assert torch.allclose(queue.covariance(), centred.T @ centred / 18 + 1e-4 * torch.eye(4).double(), atol=1e-9)


def test_a_trainer_goes_on_from_its_state():
    for name in OWN:
        torch.manual_seed(0)
        loader, outside = Batches(12), Batches(2, label=-1)
        one = make(name, loader, outside, epochs=4)
        one.train_epoch(1)
        state, seed = copy.deepcopy(one.state_dict()), torch.get_rng_state()
        one.train_epoch(2)
        other = make(name, loader, outside, epochs=4)
        other.load_state_dict(state)
        torch.set_rng_state(seed)
        other.train_epoch(2)
        for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True):
            assert torch.equal(a, b)
