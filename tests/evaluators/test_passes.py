"""One pass over each data set, in memory and on disk."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from openood_dream.datasets import images, loaders
from openood_dream.datasets.imglist import write_imglist
from openood_dream.errors import InputError, InputWarning
from openood_dream.evaluators import passes as module
from openood_dream.evaluators.passes import TEST, file_name, forward_pass, passes_dir
from openood_dream.postprocessors.base import Postprocessor
from openood_dream.store import tensors

CPU = torch.device("cpu")


@pytest.fixture
def kept(net, tmp_path) -> dict[str, Path]:
    """A checkpoint of the network, and where its passes are kept."""
    tensors.write_checkpoint(tmp_path / "best.ckpt", net.state_dict())
    return {"checkpoint": tmp_path / "best.ckpt", "cache_dir": tmp_path / "passes"}


def test_mode_and_order_do_not_depend_on_the_loader(net, tiny):
    data = tiny.config().data
    net.train()
    found = forward_pass(net, data.loader(*TEST, batch_size=7), CPU)
    assert not net.training
    whole = data.images(*TEST).__getitems__(range(len(data.images(*TEST))))
    with torch.no_grad():
        logits, features = net(whole["data"], return_feature=True)
    assert torch.allclose(found.logits, logits, atol=1e-4) and torch.allclose(found.features, features, atol=1e-4)
    assert torch.equal(found.labels, whole["label"])


def test_each_image_passes_once_for_all_postprocessors(net, tiny, scored, passes_of, run, tmp_path):
    seen = []
    hook = net.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    passes = passes_of(tiny.config())
    for name in ("msp", "ebo", "knn"):
        run(scored(name), tmp_path / name, passes)
    hook.remove()
    data = passes.data
    sets = [
        TEST,
        ("dataset", "train"),
        ("dataset", "val"),
        ("ood_dataset", "val"),
        *(("ood_dataset", *which) for which in data.ood_sets()),
    ]
    sets += [("ood_dataset", "csid", name) for name in data.csid_sets()]
    assert sum(seen) == sum(len(data.images(*which)) for which in sets)


def test_passes_on_disk_serve_other_detectors_and_later_runs(
    tiny, scored, passes_of, run, folder, kept, tmp_path, monkeypatch
):
    run(scored("knn"), tmp_path / "a", passes_of(tiny.config(), **kept))
    monkeypatch.setattr(module, "forward_pass", lambda *args: pytest.fail("ran the network again"))
    monkeypatch.setattr(images, "read_image", lambda *args, **more: pytest.fail("decoded images again"))
    monkeypatch.setattr(loaders, "loader", lambda *args, **more: pytest.fail("made a loader"))
    later = passes_of(tiny.config(), **kept)
    for name in ("msp", "ebo", "knn"):
        run(scored(name), tmp_path / name, later)
        for file in ("ood.csv", "scores/near_digits.npz"):
            assert (tmp_path / name / file).read_bytes() == (folder / name / file).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="where /proc lists what a process has mapped")
def test_passes_on_disk_are_mapped(tiny, passes_of, kept):
    found = passes_of(tiny.config(), **kept).of(("dataset", "train"), Postprocessor)
    file = next(kept["cache_dir"].rglob("pass.safetensors"))
    assert str(file) in Path("/proc/self/maps").read_text() and found.features.dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    ["checkpoint", "--dataset.image_size 12", "--dataset.normalization_type cifar10", "--dataset.test.imglist_pth"],
)
def test_another_checkpoint_list_or_transform_makes_another_pass(net, tiny, passes_of, kept, change):
    def folders(*overrides: str) -> set[Path]:
        passes_of(tiny.config(*overrides), **kept).of(TEST, Postprocessor)
        return set(kept["cache_dir"].iterdir())

    before = folders()
    assert len(folders()) == 1
    if change == "checkpoint":
        changed = {name: tensor + 1e-4 for name, tensor in net.state_dict().items()}
        torch.save(changed, kept["checkpoint"])
        assert len(folders()) == 2
    elif change.endswith("pth"):
        assert len(folders(change, tiny.config().dataset.val.imglist_pth)) == 2
    else:
        assert len(folders(*change.split())) == 2
    assert folders() >= before


def test_odd_test_images_are_said_whenever_their_pass_serves(tiny, passes_of, kept, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a rotation, which is not done
    Image.new("RGB", (16, 16)).save(tmp_path / "turned.jpg", exif=exif)
    write_imglist(tmp_path / "odd.txt", [("turned.jpg", 0)])
    words = ["--dataset.test.imglist_pth", str(tmp_path / "odd.txt"), "--dataset.test.data_dir", str(tmp_path)]
    for _ in range(2):
        with pytest.warns(InputWarning, match="odd.txt: 1 images with"):
            passes_of(tiny.config(*words), **kept).of(TEST, Postprocessor)


def test_damaged_pass(tiny, passes_of, kept):
    passes_of(tiny.config(), **kept).of(TEST, Postprocessor)
    file = next(kept["cache_dir"].rglob("pass.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: "):
        passes_of(tiny.config(), **kept).of(TEST, Postprocessor)


def test_head_is_a_copy(net, tiny, passes_of):
    head = passes_of(tiny.config()).head()
    assert torch.equal(head.weight, net.fc.weight) and head is not net.fc and not head.weight.requires_grad
    assert passes_of(tiny.config(), torch.nn.Flatten()).head() is None


def test_passes_lie_beside_the_checkpoint(tmp_path):
    assert passes_dir(tmp_path / "best.ckpt", tmp_path / "out") == tmp_path / "passes"
    (tmp_path / "file").write_text("")
    assert passes_dir(tmp_path / "file" / "best.ckpt", tmp_path / "out") == tmp_path / "out" / "passes"


def test_the_id_test_set_has_the_data_sets_name():
    assert file_name(TEST, "digits") == "digits" and file_name(("dataset", "val"), "digits") == "val"
    assert file_name(("ood_dataset", "nearood", "tin"), "digits") == "tin"
