"""VOS: Gaussians that follow the queue, and what public implementations got wrong."""

from __future__ import annotations

import pytest
import torch
from toys import Batches, filled, make

from openood_dream.trainers.vos import Gaussians


def test_means_and_covariance_follow_the_queue():
    queue = Gaussians(3, 6, 4, torch.float64)
    for _ in range(40):
        queue.push(torch.randn(5, 4) + 2, torch.randint(3, (5,)))
    assert queue.full()
    rows = queue.rows.double()
    centred = (rows - rows.mean(1, keepdim=True)).flatten(0, 1)
    assert torch.allclose(queue.means(), rows.mean(1), atol=1e-9)
    assert torch.allclose(queue.covariance(), centred.T @ centred / 18 + 1e-4 * torch.eye(4).double(), atol=1e-9)


@pytest.mark.parametrize("name", ["vos", "npos"])
def test_outliers_move_the_backbone(name):
    """In OpenOOD's VOS energies pass through Python lists, and no gradient reaches the network."""
    trainer, loader = filled(name)
    trainer.optimizer.zero_grad()
    trainer.terms(loader.batches[0])["outliers"].backward()
    assert trainer.net.backbone.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name, part", [("vos", "phi"), ("vos", "weights"), ("npos", "detector")])
def test_outlier_detector_learns_from_step_to_step(name, part):
    """OpenOOD's VOS makes a new random layer in every call."""
    trainer, loader = filled(name)
    module = getattr(trainer, part)
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in module.parameters()} <= trained
    before = [p.detach().clone() for p in module.parameters()]
    trainer.step(loader.batches[0])
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("name", ["vos", "npos"])
def test_outliers_begin_at_their_epoch(name):
    trainer, loader = filled(name)
    assert "outliers" in trainer.terms(loader.batches[0])
    trainer.epoch = 1
    assert "outliers" not in trainer.terms(loader.batches[0])


@pytest.mark.parametrize(
    "name, key", [("vos", "trainer.start_epoch"), ("npos", "trainer.trainer_args.start_epoch_KNN")]
)
def test_training_without_its_outliers_says_so(name, key):
    trainer = make(name, Batches(12), epochs=3)
    trainer.train_epoch(1)  # outliers begin with the second one
    (text,) = trainer.remarks()
    assert text.startswith("outliers took part in 0 of 12 steps: trained as ") and f"lower {key} (2)" in text
    other = make(name, Batches(12), epochs=3)
    other.load_state_dict(trainer.state_dict())
    other.train_epoch(2)
    assert other.remarks() == [] and int(other.participation.with_outliers) == 12


def test_a_queue_that_fills_late_is_remarked():
    trainer = make("vos", Batches(4), settings={"sample_number": 10, "sample_from": 50, "start_epoch": 1})
    for batch in trainer.train_loader.batches:
        batch["label"] = torch.tensor([0, 0, 1, 2])
    trainer.train_epoch(1)
    (text,) = trainer.remarks()
    assert "0 of 4 steps" in text and "trainer.sample_number (10)" in text and "4 in all epochs" in text
