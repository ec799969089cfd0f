"""DREAM-OOD's phase 3: the loss by hand, its alternatives, and a phi that keeps the energies' order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toys import Batches, Net, make, total


def pair(size: int = 5, outliers: int = 3) -> tuple[Batches, Batches]:
    return Batches(1, size=size), Batches(1, size=outliers, label=-1)


def test_loss_by_hand():
    loaders = pair()
    trainer = make("dream_ood", *loaders)
    (batch,), (outliers,) = (loader.batches for loader in loaders)
    logits, others = trainer.net(batch["data"]), trainer.net(outliers["data"])
    energies = torch.cat([logits.logsumexp(1), others.logsumexp(1)])
    known = torch.cat([torch.ones(5), torch.zeros(3)])
    odds = trainer.phi(energies[:, None]) @ torch.tensor([-1.0, 1.0])
    expected = F.cross_entropy(logits, batch["label"]) + 1.5 * F.binary_cross_entropy_with_logits(odds, known)
    assert total(trainer, batch, outliers).item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_outlier_exposure():
    loaders, net = pair(), Net()
    ours = make("dream_ood", *loaders, net=net, settings={"beta": 0.5, "loss": "oe"})
    batches = [loader.batches[0] for loader in loaders]
    assert total(ours, *batches).item() == pytest.approx(total(make("oe", *loaders, net=net), *batches).item())


def test_outliers_as_one_more_class():
    loaders = pair()
    trainer = make("dream_ood", *loaders, settings={"beta": 0.4, "loss": "extra_class"})
    (batch,), (outliers,) = (loader.batches for loader in loaders)
    known, others = (F.pad(trainer.net(x), (0, 1)) for x in (batch["data"], outliers["data"]))
    expected = F.cross_entropy(known, batch["label"]) + 0.4 * F.cross_entropy(others, torch.full((3,), 3))
    assert total(trainer, batch, outliers).item() == pytest.approx(expected.item(), rel=1e-5)


def test_energy_margins():
    """Liu et al., sample by sample, in their sign of the energy."""
    loaders = pair()
    trainer = make("dream_ood", *loaders, settings={"beta": 0.1, "loss": "margin", "m_in": 2.0, "m_out": 0.5})
    (batch,), (outliers,) = (loader.batches for loader in loaders)
    id_part = [max(0.0, -row.logsumexp(0).item() + 2.0) ** 2 for row in trainer.net(batch["data"])]
    ood_part = [max(0.0, -0.5 + row.logsumexp(0).item()) ** 2 for row in trainer.net(outliers["data"])]
    terms = trainer.terms(batch, outliers)
    assert terms["outliers"].item() == pytest.approx(0.1 * (sum(id_part) / 5 + sum(ood_part) / 3), rel=1e-5)
    assert trainer.phi is None and not [*trainer.extra.parameters()]


@pytest.mark.parametrize("loss", ["energy", "margin", "oe", "extra_class"])
def test_inliers_of_pairs_are_id_images(loss):
    (batch,), auxiliary = Batches(1, size=5).batches, {"data": torch.randn(4, 3, 4, 4)}
    auxiliary["label"] = torch.tensor([-1, 2, -1, 0])
    inliers = auxiliary["label"] >= 0
    settings = {"beta": 0.7, "loss": loss, "m_in": 1.0, "m_out": 0.0}
    paired = make("dream_ood", [batch], [auxiliary], settings=settings | {"pairs": True})
    joined = {key: torch.cat([batch[key], auxiliary[key][inliers]]) for key in ("data", "label")}
    outliers = {key: auxiliary[key][~inliers] for key in ("data", "label")}
    apart = make("dream_ood", [joined], [outliers], net=paired.net, settings=settings)
    for name, term in apart.terms(joined, outliers).items():
        assert paired.terms(batch, auxiliary)[name].item() == pytest.approx(term.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["energy", "margin", "oe", "extra_class"])
def test_batch_without_outliers(loss):
    (batch,) = Batches(1, size=2).batches
    trainer = make("dream_ood", [batch], [batch], settings={"loss": loss, "pairs": True})
    _, about = trainer.train_epoch(1)
    assert about["terms"]["outliers"] == 0 and about["terms"]["cross-entropy"] > 0


def test_phi_is_trained_with_the_network():
    trainer = make("dream_ood", Batches(2), Batches(2, label=-1))
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in (*trainer.phi.parameters(), *trainer.net.parameters())} <= trained


def test_phi_rises_with_the_energy():
    trainer = make("dream_ood", Batches(1), Batches(1, label=-1))
    with torch.no_grad():
        trainer.phi.weight.copy_(torch.tensor([[3.0], [-1.0]]))
    trainer.train_epoch(1)
    outlier, id_ = trainer.phi.weight[:, 0].tolist()
    assert id_ - outlier == pytest.approx(1.0)
    before = torch.tensor([[-0.2], [2.0]])  # rises enough, so it stays
    with torch.no_grad():
        trainer.phi.weight.copy_(before)
    trainer.phi.hold()
    assert torch.equal(trainer.phi.weight, before)


def test_outliers_reach_the_network():
    """In a public implementation of a similar method no gradient does."""
    loaders = pair()
    trainer = make("dream_ood", *loaders)
    x = loaders[1].batches[0]["data"].requires_grad_()
    total(trainer, *(loader.batches[0] for loader in loaders)).backward()
    assert x.grad.abs().sum() > 0
