"""The data of a config: its image lists, each opened once, and their loaders."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch.utils.data import DataLoader

from openood_dream.datasets import builtin
from openood_dream.datasets.images import ImageList, Transform, loader
from openood_dream.datasets.mixture import Mixture
from openood_dream.datasets.settings import (
    DatasetSettings,
    GroupSettings,
    OODDatasetSettings,
    PreprocessorSettings,
    SplitSettings,
)
from openood_dream.errors import InputError

LABELLED = (("dataset", "train"), ("dataset", "val"), ("dataset", "test"))  # and csid: their labels are ID classes


class Data:
    """The data sets of a config. Each is named by the keys of its section, such as ("ood_dataset", "nearood", "tin").

    Args:
        dataset: the ID images, and how every image is prepared.
        preprocessor: how training images are augmented.
        ood: the OOD images, and the covariate-shifted ID images; None where the config has none.
        data_root: the folder that a built-in benchmark is written into.
    """

    def __init__(
        self,
        dataset: DatasetSettings,
        preprocessor: PreprocessorSettings,
        ood: OODDatasetSettings | None = None,
        data_root: str | Path = "data",
    ) -> None:
        self.dataset, self.preprocessor, self.ood, self.data_root = dataset, preprocessor, ood, data_root
        self._opened: dict[tuple[str, ...], ImageList] = {}

    @cached_property
    def transform(self) -> Transform:
        """How the images are prepared."""
        return Transform(
            pre_size=self.dataset.pre_size,
            image_size=self.dataset.image_size,
            normalization=self.dataset.normalization_type or "",
            interpolation=self.dataset.interpolation,
            channels=self.dataset.channels,
            flip=self.preprocessor.horizontal_flip,
            shift=self.preprocessor.shift,
            border=self.preprocessor.border,
            crop=self.preprocessor.random_crop,
            resized_crop="imagenet" in self.dataset.name,
            randaugment=self.preprocessor.randaugment,
            views=self.preprocessor.views,
        )

    @cached_property
    def auxiliary_transform(self) -> Transform:
        """How auxiliary images are prepared: as `dataset.oe` says where it says something else than `dataset`."""
        oe, own = self.dataset.oe, (self.dataset.interpolation,)
        if oe is None or (oe.ways or own) == own and oe.qualities is None:
            return self.transform
        return replace(self.transform, mixture=Mixture(oe.ways or own, oe.qualities))

    def coloured(self) -> Data:
        """The same data sets as an imagination needs them, whatever classifiers see: in colours, mirrored at random, one view."""
        preprocessor = self.preprocessor
        if self.dataset.channels == 3 and preprocessor.horizontal_flip != "alternate" and preprocessor.views == 1:
            return self
        dataset = self.dataset.model_copy(update={"channels": 3})
        name = preprocessor.name if preprocessor.views == 1 else "base"
        changes = {"horizontal_flip": bool(preprocessor.horizontal_flip), "name": name}
        preprocessor = preprocessor.model_copy(update=changes)
        return Data(dataset, preprocessor, self.ood, self.data_root)

    def ensure(self) -> None:
        """Writes the built-in benchmark that `dataset.make` names under data_root, if it is not there yet."""
        builtin.ensure(self.dataset.make, self.data_root)

    def split(self, *which: str) -> SplitSettings:
        """The section of a data set, named by `which`; InputError where it is missing."""
        first, *path = which
        if first == "dataset":
            return self.dataset.split(*path)
        if path == ["val"]:
            found = self._ood.val
            if found is None:
                raise self._ood.error("val", "missing; expected imglist_pth and data_dir")
            return found
        group, name = path
        sets = self._group(group).sets
        if name not in sets:
            raise self._ood.error(f"{group}.{name}", f"missing; the sets of {group} are {', '.join(sets)}")
        return sets[name]

    @property
    def _ood(self) -> OODDatasetSettings:
        if self.ood is None:
            raise InputError("ood_dataset: missing; expected val, nearood and farood with their image lists")
        return self.ood

    def _group(self, group: str) -> GroupSettings:
        found = self._ood.csid if group == "csid" else self._ood.groups.get(group)
        if found is None:
            raise self._ood.error(group, "missing; expected datasets, a list of names, and an image list of each")
        return found

    def images(self, *which: str) -> ImageList:
        """The images of a data set named by `which`, in the order of its list and without augmentation.

        Raises:
            InputError: the section is missing, its list cannot be read, or labels of ID images are no ID classes.
        """
        if which not in self._opened:
            split = self.split(*which)
            if which == ("dataset", "oe"):
                images = self.open_auxiliary(split.imglist_pth, split.data_dir)
            else:
                images = self.open(split.imglist_pth, split.data_dir, f"{'.'.join(which)}.imglist_pth")
            if which in LABELLED or which[:2] == ("ood_dataset", "csid"):
                self.check_labels(images)
            self._opened[which] = images
        return self._opened[which]

    def open(self, imglist: str | Path, data_dir: str | Path, key: str) -> ImageList:
        """The images of any other list, prepared in the same way.

        Args:
            imglist: the list.
            data_dir: the folder that its names start from.
            key: the config key that names the list, for messages.
        """
        return ImageList(imglist, data_dir, self.transform, key=key)

    def open_auxiliary(self, imglist: str | Path, data_dir: str | Path) -> ImageList:
        """The images of a list that stands for `dataset.oe`, prepared as that says.

        Args:
            imglist: the list.
            data_dir: the folder that its names start from.
        """
        return ImageList(imglist, data_dir, self.auxiliary_transform, key="dataset.oe.imglist_pth")

    def check_labels(self, images: ImageList) -> None:
        """Raises InputError for a label of `images` that is not one of the ID classes."""
        lowest, highest, classes = int(images.labels.min()), int(images.labels.max()), self.dataset.num_classes
        if lowest < 0 or highest >= classes:
            wrong = highest if highest >= classes else lowest
            expected = f"labels 0 to {classes - 1} (dataset.num_classes: {classes})"
            raise InputError(f"{images.imglist}: label {wrong} does not fit; expected {expected}")

    def loader(self, *which: str, augment: bool = False, batch_size: int | None = None) -> DataLoader:
        """The loader of a data set.

        Args:
            which: the keys of its section.
            augment: whether images are augmented and shuffled, for training.
            batch_size: images per batch; that of the section (of ood_dataset for its sets) if not given.

        Raises:
            InputError: as `images`, or there is no batch size.
        """
        section = self.dataset if which[0] == "dataset" else self._ood
        batch_size = batch_size or self._batch_size(*which)
        images = self.images(*which)
        images = images.augmented() if augment else images
        drop_last = augment and self.split(*which).drop_last
        return loader(images, batch_size, shuffle=augment, workers=section.num_workers, drop_last=drop_last)

    def _batch_size(self, *which: str) -> int:
        if which[0] == "dataset":
            return self.split(*which).needs_batch_size()
        if self._ood.batch_size is None:
            raise self._ood.error("batch_size", "missing; expected an integer >= 1")
        return self._ood.batch_size

    def identity(self, *which: str) -> str:
        """A fingerprint of the images of a data set named by `which`; InputError for an image that is not there."""
        return self.images(*which).identity

    def ood_sets(self) -> list[tuple[str, str]]:
        """(group, name) of every OOD test set: nearood, farood and groups with names of their own, below `ood_dataset`.

        Raises:
            InputError: there is none.
        """
        groups = self._ood.groups
        if not groups:
            raise self._ood.error("", "no test sets; expected nearood or farood with datasets, a list of names")
        return [(group, name) for group, of in groups.items() for name in of.datasets]

    def csid_sets(self) -> list[str]:
        """The names of the covariate-shifted ID sets, `ood_dataset.csid`; none where there is no such group."""
        return self._ood.csid.datasets if self._ood.csid else []
