"""Bad input ends in exit code 2 and one line that names file, key and the way out, before anything is written."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from openood_dream import store
from openood_dream.config import InputError, load_config
from openood_dream.networks import get_network
from openood_dream.openood.host import check_imglist


class Row(NamedTuple):
    """A command that is rejected with a line that matches `line` as a whole.

    `{tiny}` in words stands for the tiny config, `{tmp}` for an empty folder, where `files` are written first: text,
    bytes, or what makes new bytes of the old ones, for all files of a pattern.
    """

    name: str
    words: str
    line: str
    files: dict[str, str | bytes | Callable[[bytes], bytes]] = {}


def places(words: str, tiny, tmp: Path, write: Callable[[str], str] = str) -> str:
    return (
        words.replace("{tiny}", write(tiny.file))
        .replace("{tmp}", write(str(tmp)))
        .replace("{root}", write(str(tiny.root)))
    )


def prepare(row: Row, tiny, tmp: Path) -> None:
    if any(name.startswith("dream/") for name in row.files):
        shutil.copytree(tiny.root / "dream", tmp / "dream")
    for name, content in row.files.items():
        if callable(content):
            found = list(tmp.glob(name))
            assert found, name
            for path in found:
                path.write_bytes(content(path.read_bytes()))
        else:
            (tmp / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp / name).write_bytes(content.encode() if isinstance(content, str) else content)


def tree(*folders: str | Path) -> dict[str, int]:
    """All files with their times, and all folders."""
    found = {}
    for folder in folders:
        for entry in os.scandir(folder):
            found[entry.path] = 0 if entry.is_dir() else entry.stat().st_mtime_ns
            found |= tree(entry.path) if entry.is_dir() else {}
    return found


def png(mode: str = "RGB", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size, size)).save(buffer, "PNG")
    return buffer.getvalue()


def weights(value: object, **kwargs) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


# --------------------------------------------------------------------------------------------------- the configs

TRAIN = "train --config {tiny} benchmarks/methods/base.yml --root {tmp}/new"
LAYER = f"{TRAIN} --config {{tmp}}/layer.yml"
SPACE = "space --config {tiny} --root {tmp}/new"
SCORE = "evaluate --config {tiny} pipelines/test/test_ood.yml postprocessors/knn.yml --root {tmp}/new"


def layer(name: str, text: str | bytes, line: str, **files: str) -> Row:
    return Row(
        name, LAYER, r"{tmp}/layer\.yml" + line, {"layer.yml": text, **{f"{key}.yml": t for key, t in files.items()}}
    )


def key(words: str, line: str, command: str = TRAIN) -> Row:
    """A bad value of a key on the command line."""
    return Row(words, f"{command} --{words}", f"command line: {line}")


CONFIGS = [
    *(
        Row(
            f"no such config, {command}",
            f"{command} --config benchmarks/digit.yml",
            r"benchmarks/digit\.yml: no such file, nor among the shipped configs; did you mean 'benchmarks/digits\.yml'\?",
        )
        for command in (
            "run",
            "benchmark",
            "job",
            "train",
            "evaluate",
            "anchors",
            "space",
            "generator",
            "sample",
            "synthesize",
            "plot grid",
        )
    ),
    Row("a folder as config", "train --config {tmp}", r"{tmp}: expected a file, got a folder"),
    layer(
        "a list that is not closed",
        "a: [1, 2\nb: 3\n",
        r":2:2: while parsing a flow sequence: expected ',' or '\]', but got ':'",
    ),
    layer("tabs", "dream:\n\toutliers: {k: 3}\n", r":2:1: while scanning for the next token: .*'\\t'.*"),
    layer("no mapping", "just words\n", ": expected a mapping of settings at the top level, got 'just words'"),
    layer("a list of mappings", "- a: 1\n- b: 2\n", r": expected a mapping of settings at the top level, got \[.*\]"),
    layer("empty", "", ": expected a mapping of settings at the top level, got an empty file"),
    layer("not UTF-8", "dream: {class_names: [größe]}".encode("latin-1"), r": expected UTF-8 text, got byte 0xf6"),
    layer("binary", png(), r": expected UTF-8 text, got byte 0x89"),
    layer("a key twice", "seed: 1\ndevice: cpu\nseed: 2\n", r":3:1: the key 'seed' is given twice, first on line 1"),
    layer("a number as key", "seed: 1\n3: 2\n", r":2:1: expected text as a key, got '3'; put it in quotes"),
    layer("a reference without quotes", "a: @{seed}\n", r":1:4: .*put a reference in quotes, '@\{key\}'"),
    layer(
        "a reference to no key",
        "a: '@{optimiser.lr}'\n",
        r": a: the reference '@\{optimiser\.lr\}' names no key; did you mean '@\{optimizer\.lr\}'\?",
    ),
    layer("a reference to itself", "a: '@{b}'\nb: '@{a}'\n", r": .*leads back to itself \(.*\)"),
    layer("includes itself", "include: [layer.yml]\n", r": include: layer\.yml leads back to itself \(.*\)"),
    layer("an include loop", "include: [b.yml]\n", "", b="include: [layer.yml]\n")._replace(
        line=r"{tmp}/b\.yml: include: layer\.yml leads back to itself \({tmp}/layer\.yml -> {tmp}/b\.yml -> {tmp}/layer\.yml\)"
    ),
    layer(
        "includes no file",
        "include: [bsae.yml]\n",
        r": include: bsae\.yml: no such file, .*; did you mean 'base\.yml'\?",
        base="{a: 1}",
    ),
    layer("includes text", "include: base.yml\n", r": include: expected a list of files, got 'base\.yml'"),
    layer("an unknown key", "dream: {outlier: {k: 3}}", r": dream\.outlier: unknown key; did you mean 'outliers'\?"),
    layer(
        "an unknown key below",
        "dream: {outliers: {sgima: 0.1}}",
        r": dream\.outliers\.sgima: unknown key; did you mean 'sigma'\?",
    ),
    layer(
        "an unknown key of the generator",
        "dream: {generator: {train: small, step: 5}}",
        r": dream\.generator\.step: unknown key; did you mean 'steps'\?",
    ),
    layer("an unknown section", "dreams: {}", r": dreams: unknown key; did you mean 'dream'\?"),
    layer(
        "an unknown key of the trainer",
        "trainer: {name: oe, lambda: 1.0}",
        r": trainer\.lambda: unknown key; did you mean 'lambda_oe'\?",
    ),
    layer(
        "an unknown key of the benchmark",
        "benchmark: {seed: [1]}",
        r": benchmark\.seed: unknown key; did you mean 'seeds'\?.*",
    ),
    layer("an unknown key at the top", "divice: cpu", r": divice: unknown key; did you mean 'device'\?"),
    layer(
        "a list where a mapping belongs",
        "dream: [outliers, space]",
        r": dream: expected a mapping of settings, got \['outliers', 'space'\].*",
    ),
    layer(
        "text where a mapping belongs",
        "dream: {space: resnet18}",
        r": dream\.space: expected a mapping of settings, got 'resnet18'",
    ),
    layer("dataset is a list", "dataset: [a]", r": dataset: expected a mapping .*"),
    layer("optimizer is text", "optimizer: sgd", r": optimizer: expected a mapping .*"),
    layer("network is text", "network: resnet18", r": network: expected a mapping .*"),
    layer("preprocessor is text", "preprocessor: base", r": preprocessor: expected a mapping .*"),
    layer("a split is text", "dataset: {train: train.txt}", r": dataset\.train: .*"),
    layer("a trainer is text", "trainer: base", r": trainer: expected .*"),
    layer("a seed as text", "seed: 'one'", r": seed: expected an integer >= 0, got 'one'"),
    layer("a seed as list", "seed: [1, 2]", r": seed: expected an integer >= 0, got \[1, 2\]"),
    layer("not a number", "dream: {outliers: {sigma: .nan}}", r": dream\.outliers\.sigma: expected .*"),
    layer(
        "yes for a number", "optimizer: {num_epochs: yes}", r": optimizer\.num_epochs: expected an integer >= 1, got .*"
    ),
    Row(
        "an unknown key on the command line",
        f"{TRAIN} --optimizer.learning_rate 1",
        r"command line: optimizer\.learning_rate: unknown key; .*",
    ),
    key("dream.space.epoch 1", r"dream\.space\.epoch: unknown key; did you mean '--dream\.space\.epochs'\?"),
    key("seed", r"seed: no value; write null for none and '\"\"' for empty text"),
    key("seed [1", r"seed: expected a YAML value, got '\[1' .*"),
    key("dream.outliers.k many", r"dream\.outliers\.k: expected an integer >= 1, got 'many'"),
    key("dream.outliers.k 0", r"dream\.outliers\.k: expected an integer >= 1, got 0"),
    key("dream.outliers.sigma -1", r"dream\.outliers\.sigma: expected a number > 0 or 'auto', got -1"),
    key("dream.outliers.method kn", r"dream\.outliers\.method: expected 'knn', .*got 'kn'"),
    key("dream.outliers.keep 900", r"dream\.outliers\.keep: expected keep <= n_draws, got keep 900 and n_draws 20"),
    key("dream.space.epochs 2.5", r"dream\.space\.epochs: expected an integer >= 1, got 2\.5"),
    key(
        "dream.synthesis.prompt 'a digit'", r"dream\.synthesis\.prompt: expected text with \{\} once, .* got 'a digit'"
    ),
    key(
        "dream.synthesis.size 100",
        r"dream\.synthesis\.size: expected an integer >= 8 and a multiple of 8 or null, got 100",
    ),
    key("dream.synthesis.scheduler dpm", r"dream\.synthesis\.scheduler: expected .*'dpmsolver\+\+'.* got 'dpm'", SPACE),
    key("dream.filter.confidence 2", r"dream\.filter\.confidence: expected .* got 2"),
    key("dream.class_names '{a: b}'", r"dream\.class_names: expected a file or a list of names, got a mapping"),
    key("device gpu", r"device: expected auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
    Row(
        "a GPU that is not there", f"{TRAIN} --device cuda:99", r"device: 'cuda:99' cannot be used here .*; expected .*"
    ),
    key("precision half", r"precision: expected 'auto', 'float32' or 'bfloat16', got 'half'"),
    key("backend torch", r"backend: expected 'auto', 'openood' or 'standalone', got 'torch'"),
    key("trainer.name oee", r"trainer\.name: .*'oee'.*"),
    key("network.name timm:resnet19", r"network\.name: timm has no model 'resnet19'; did you mean .*resnet18.*"),
    key(
        "network.name resnet18",
        r"network\.name: unknown network 'resnet18'; expected timm:<model>, for example timm:resnet18",
    ),
    key("network.args '{channels: eight}'", r"network\.args: timm refuses .*"),
    key("network.args 8", r"network\.args: expected a mapping .*"),
    key(
        "dream.space.network timm:resnet19",
        r"dream\.space\.network: timm has no model 'resnet19'; did you mean .*",
        SPACE,
    ),
    key("dataset.num_classes six", r"dataset\.num_classes: expected an integer >= 1, got 'six'"),
    key("dataset.image_size 0", r"dataset\.image_size: expected an integer >= 1, got 0"),
    key("dataset.train.batch_size many", r"dataset\.train\.batch_size: expected an integer >= 1, got 'many'"),
    key("dataset.interpolation cubic", r"dataset\.interpolation: expected one of .*bicubic.*, got 'cubic'"),
    key("dataset.make mnist", r"dataset\.make: unknown benchmark 'mnist'; expected one of digits, .*"),
    key("dataset.num_workers many", r"dataset\.num_workers: expected an integer >= 0, got 'many'"),
    key("optimizer.num_epochs ten", r"optimizer\.num_epochs: expected an integer >= 1, got 'ten'"),
    key("optimizer.num_epochs 0", r"optimizer\.num_epochs: expected an integer >= 1, got 0"),
    key("optimizer.lr fast", r"optimizer\.lr: expected a number > 0, got 'fast'"),
    key(
        "optimizer.momentum null",
        r"optimizer\.momentum: missing; add a config file that sets it, or --optimizer\.momentum on the command line",
    ),
    Row(
        "no validation list",
        f"{SPACE} --dataset.val null",
        r"{tiny}: dataset\.val: missing; expected imglist_pth and data_dir",
    ),
    key(
        "dream.synthesis.size 512",
        r"dream\.synthesis\.size: 512 pixels, and the generator is trained with 16; set it to 16, or null",
        SPACE.replace("space", "synthesize", 1),
    ),
    *(
        key(f"postprocessor.postprocessor_args.{words}", rf"postprocessor\.postprocessor_args\.{line}", SCORE)
        for words, line in {
            "K 0": r"K: expected an integer >= 1, got 0",
            "K many": r"K: expected an integer >= 1, got 'many'",
        }.items()
    ),
    key("optimizer.clip_norm 0", r"optimizer\.clip_norm: expected a number > 0 or null, got 0"),
    layer(
        "RandAugment beyond its strength",
        "preprocessor: {name: randaugment, n: 1, m: 99}",
        r": preprocessor\.m: expected an integer from 1 to 30, got 99",
    ),
    key("preprocessor.horizontal_flip maybe", r"preprocessor\.horizontal_flip: expected true or false, got 'maybe'"),
    Row(
        "an unknown pipeline",
        "run --config {tiny} --pipeline.name trian --root {tmp}/new",
        r"command line: pipeline\.name: unknown 'trian'; did you mean 'train'\? known are .*",
    ),
    Row(
        "a data set without a name",
        f"{TRAIN} --dataset.name null",
        r"command line: dataset\.name: missing; add a config file that sets it, or --dataset\.name on the command line",
    ),
    Row("a benchmark without one", "benchmark --config {tiny} --benchmark null", r"command line: benchmark: .*"),
    Row(
        "seeds twice",
        "benchmark --config {tiny} --benchmark.seeds '[1, 1]' --root {tmp}/new",
        r"command line: benchmark\.seeds: expected each entry once, got 1 2 times",
    ),
    Row(
        "no seeds",
        "benchmark --config {tiny} --benchmark.seeds '[]' --root {tmp}/new",
        r"command line: benchmark\.seeds: expected at least one entry, got an empty list",
    ),
    Row(
        "an unknown detector",
        "benchmark --config {tiny} --benchmark.postprocessors '[mps]' --root {tmp}/new",
        r".*postprocessors/mps\.yml: no such file, .*",
    ),
    layer(
        "a label that leaves the folder",
        "benchmark: {methods: {../x: [a.yml]}}",
        r": benchmark\.methods: expected labels that can name a folder, got '\.\./x'",
    ),
]

# -------------------------------------------------------------------------------------------- image lists and images

ONE = "digits/train/zero/0000.png"
LIST = f"{TRAIN} --dataset.train.imglist_pth {{tmp}}/list.txt"
IMAGES = f"{LIST} --dataset.train.data_dir {{tmp}}"


def imglist(name: str, content: str | bytes, line: str, words: str = LIST) -> Row:
    return Row(name, words, r"{tmp}/list\.txt" + line, {"list.txt": content})


def image(name: str, content: bytes, line: str, words: str = IMAGES) -> Row:
    return Row(name, words, r"{tmp}/a b\.png: " + line, {"a b.png": content, "list.txt": "a b.png 0\n"})


OUTSIDE = r": image '{}' leaves the data folder; expected a path below data_dir, relative to it"
LISTS = [
    *(
        Row(
            f"no {split} list",
            f"{TRAIN} --dataset.{split}.imglist_pth {{tmp}}/none.txt",
            rf"{{tmp}}/none\.txt: no such image list \(dataset\.{split}\.imglist_pth\); check the path",
        )
        for split in ("train", "val")
    ),
    Row(
        "no outlier list",
        "train --config {tiny} pipelines/train/oe.yml datasets/digits/digits_oe.yml --root {tmp}/new"
        " --dataset.oe.imglist_pth {tmp}/none.txt",
        r"{tmp}/none\.txt: no such image list \(dataset\.oe\.imglist_pth\); check the path",
    ),
    Row(
        "no list for the space",
        f"{SPACE} --dataset.train.imglist_pth {{tmp}}/none.txt",
        r"{tmp}/none\.txt: no such image list \(dataset\.train\.imglist_pth\); check the path",
    ),
    Row(
        "no test list of a benchmark",
        "benchmark --config {tiny} --root {tmp}/new --ood_dataset.nearood.near_digits.imglist_pth {tmp}/none.txt",
        r"{tmp}/none\.txt: no such image list \(ood_dataset\.nearood\.near_digits\.imglist_pth\); check the path",
    ),
    Row(
        "a list that is a folder",
        f"{TRAIN} --dataset.train.imglist_pth {{tmp}}",
        r"{tmp}: cannot read this image list .*",
    ),
    Row(
        "a list that is a number",
        f"{TRAIN} --dataset.train.imglist_pth 3",
        r"command line: dataset\.train\.imglist_pth: expected a path, got 3",
    ),
    imglist("an empty list", "", r": the image list is empty \(dataset\.train\.imglist_pth\).*"),
    imglist("blank lines alone", "\n\r\n \n", r": the image list is empty \(dataset\.train\.imglist_pth\).*"),
    imglist(
        "a list that is not UTF-8",
        f"{ONE} 0\ngröße.png 0\n".encode("latin-1"),
        r":2: expected UTF-8 text, got byte 0xf6; save it as UTF-8",
    ),
    imglist(
        "a line without a label",
        f"{ONE} 0\ndigits/train/zero/0001.png\n",
        r":2: expected 'path label' with an integer label, got 'digits/train/zero/0001\.png'",
    ),
    imglist(
        "a label that is a name", f"{ONE} zero\n", r":1: expected 'path label' with an integer label, got '.* zero'"
    ),
    imglist(
        "a label that is no whole number",
        f"{ONE} 0.0\n",
        r":1: expected 'path label' with an integer label, got '.* 0\.0'",
    ),
    imglist("a label alone, CRLF", f"{ONE} 0\r\n0\r\n", r":2: expected 'path label' with an integer label, got '0'"),
    imglist("commas", f"{ONE},0\n", r":1: expected 'path label' with an integer label, got '.*,0'"),
    imglist("tabs in a list", f"{ONE}\t0\n", r":1: expected 'path label' .*"),
    imglist(
        "a label too large",
        f"{ONE} 0\n{ONE} 6\n",
        r": label 6 does not fit; expected labels 0 to 5 \(dataset\.num_classes: 6\)",
    ),
    imglist(
        "a label below zero",
        f"{ONE} -1\n",
        r": label -1 does not fit; expected labels 0 to 5 \(dataset\.num_classes: 6\)",
    ),
    imglist("a label of many digits", f"{ONE} {10**30}\n", r":1: expected 'path label' with an integer label, .*"),
    imglist(
        "a class without images",
        f"{ONE} 0\n",
        r".*: dream\.class_names: class [0-9] has no image.*",
        f"{SPACE} --dataset.train.imglist_pth {{tmp}}/list.txt",
    )._replace(line=r".*class 1 has no image.*"),
    imglist("an absolute path", f"{ONE} 0\n/etc/passwd 0\n", ":2" + OUTSIDE.format("/etc/passwd")),
    imglist("a path that leaves", "../../secret.png 0\n", ":1" + OUTSIDE.format(r"\.\./\.\./secret\.png")),
    imglist("a path that leaves later", "a/../../secret.png 0\n", ":1" + OUTSIDE.format(r"a/\.\./\.\./secret\.png")),
    imglist("a null character", "a\0.png 0\n", ":1" + OUTSIDE.format(r"a\\x00\.png")),
    imglist(
        "an image that is not there",
        f"{ONE} 0\nno such.png 0\n",
        r": image '.*no such\.png' is not there \(dataset\.train\.imglist_pth\); check data_dir and the list",
    ),
    Row(
        "a folder of images that is not there",
        f"{TRAIN} --dataset.val.data_dir {{tmp}}/none",
        r".*val\.txt: image '{tmp}/none/.*' is not there \(dataset\.val\.imglist_pth\); check data_dir and the list",
    ),
    image("an empty image", b"", r"broken image \(.*\); restore it or take it from {tmp}/list\.txt"),
    image("no image", b"no image", r"broken image \(.*\); restore it or take it from {tmp}/list\.txt"),
    image("half an image", half(png()), r"broken image \(.*\); restore it or take it from {tmp}/list\.txt"),
    image(
        "an image that lacks its end",
        png(size=64)[:-20],
        r"broken image \(.*\); restore it or take it from {tmp}/list\.txt",
    ),
    image(
        "a broken image for the space",
        b"x",
        r"broken image \(.*\); restore it or take it from {tmp}/list\.txt",
        f"{SPACE} --dataset.train.imglist_pth {{tmp}}/list.txt --dataset.train.data_dir {{tmp}}",
    ),
    image(
        "an image of 16 bits",
        png("I;16"),
        r"broken image \(its mode I;16 has more than 8 bits a channel, save it with 8\); .*",
    ),
    Row("a text file as image", IMAGES, r"{tmp}/list\.txt: broken image .*", {"list.txt": "list.txt 0\n"}),
]

# ----------------------------------------------------------------------- classes, generator, checkpoints, artifacts

ANCHORS = "anchors --config {tiny} --root {tmp}/new"
TEST = "evaluate --config {tiny} pipelines/test/test_ood.yml postprocessors/ebo.yml --output_dir {tmp}/new --network.checkpoint"
CACHED = "--dream.cache_dir {tmp}/dream"


def index(**parts: str) -> str:
    known = dict.fromkeys(("unet", "vae", "tokenizer", "text_encoder"), ["transformers", "CLIPTextModel"])
    return json.dumps({"_class_name": "StableDiffusionPipeline"} | known | parts)


def checkpoint(name: str, content: bytes, line: str) -> Row:
    return Row(name, f"{TEST} {{tmp}}/net.ckpt", r"{tmp}/net\.ckpt: " + line, {"net.ckpt": content})


ARTIFACTS = [
    key(
        "dream.class_names '[a, b]'",
        r"dream\.class_names: 2 names for 6 classes \(dataset\.num_classes\); expected as many",
        ANCHORS,
    ),
    Row(
        "too few lines of class names",
        f"{ANCHORS} --dream.class_names {{tmp}}/names.txt",
        r"command line: dream\.class_names: 2 names for 6 classes .*",
        {"names.txt": "zero\none\n"},
    ),
    Row(
        "class names that are not UTF-8",
        f"{ANCHORS} --dream.class_names {{tmp}}/names.txt",
        r"command line: dream\.class_names: {tmp}/names\.txt: expected UTF-8 text, got byte 0xf6",
        {"names.txt": "größe\n".encode("latin-1")},
    ),
    Row(
        "a class name twice in a file",
        f"{ANCHORS} --dream.class_names {{tmp}}/names.txt",
        r"command line: dream\.class_names: {tmp}/names\.txt: expected each name once, got 'a' 2 times.*",
        {"names.txt": "a\na\nb\nc\nd\ne\n"},
    ),
    Row(
        "no file of class names",
        f"{ANCHORS} --dream.class_names {{tmp}}/none.txt",
        r"command line: dream\.class_names: no such file '{tmp}/none\.txt'; expected one class name a line",
    ),
    key(
        "dream.class_names '[a, a, b, c, d, e]'",
        r"dream\.class_names: expected each entry once, got 'a' 2 times",
        ANCHORS,
    ),
    Row(
        "labels beyond the class list",
        f"{TRAIN} --dataset.num_classes 4 --dream.class_names '[a, b, c, d]'",
        r".*train\.txt: label 5 does not fit; expected labels 0 to 3 \(dataset\.num_classes: 4\)",
    ),
    Row(
        "more classes than labels",
        f"{SPACE} --dataset.num_classes 7 --dream.class_names '[a, b, c, d, e, f, g]'",
        r".*dream\.class_names: class 6 has no image.*",
    ),
    Row(
        "k of as many embeddings",
        "sample --config {tiny} --dream.outliers.k 30",
        r".*dream\.outliers\.k: 30 is not below 30.*lower k.*",
    ),
    Row(
        "k of more embeddings",
        "sample --config {tiny} --dream.outliers.k 5000 --root {tmp}/new",
        r".*dream\.outliers\.k: 5000 is not below 30.*lower k.*",
    ),
    Row(
        "an empty generator",
        f"{ANCHORS} --dream.generator {{tmp}}",
        r"command line: dream\.generator: folder '{tmp}' has no model_index\.json; expected a Stable Diffusion folder, .*",
    ),
    Row(
        "no generator",
        f"{ANCHORS} --dream.generator {{tmp}}/none",
        r"command line: dream\.generator: no folder '{tmp}/none'; expected a Stable Diffusion folder, .*",
    ),
    Row(
        "an unknown size of generator",
        f"{ANCHORS} --dream.generator '{{train: large}}'",
        r"command line: dream\.generator\.train: expected 'small', got 'large'.*",
    ),
    Row(
        "a generator without its parts",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"dream\.generator: cannot load '{tmp}/sd' .*; expected a Stable Diffusion folder or the id of one on the hub",
        {"sd/model_index.json": index()},
    ),
    Row(
        "a generator without a UNet",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"dream\.generator: '{tmp}/sd' is a StableDiffusionPipeline; expected a pipeline of the Stable Diffusion family, .*",
        {"sd/model_index.json": index(unet=[None, None])},
    ),
    Row(
        "a generator whose index is none",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"dream\.generator: cannot load '{tmp}/sd' .*",
        {"sd/model_index.json": "{"},
    ),
    Row(
        "a generator whose index is a list",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"dream\.generator: .*'{tmp}/sd' .*",
        {"sd/model_index.json": "[]"},
    ),
    Row(
        "a hub id without network",
        f"{ANCHORS} --dream.generator nobody/nothing",
        r"dream\.generator: cannot load 'nobody/nothing' .*; expected .*",
    ),
    Row(
        "no checkpoint",
        f"{TEST} {{tmp}}/none.ckpt",
        r"{tmp}/none\.ckpt: no such checkpoint \(network\.checkpoint\); train first or check the path",
    ),
    Row("a folder as checkpoint", f"{TEST} {{tmp}}", r"{tmp}: not a readable checkpoint .*"),
    checkpoint(
        "a checkpoint of another network",
        weights({"weight": torch.ones(3)}),
        r"the weights do not fit the network \(.*\); check network\.name and num_classes",
    ),
    checkpoint(
        "a checkpoint that is a list",
        weights([torch.ones(3)]),
        r"the weights do not fit the network \(.*\); check network\.name and num_classes",
    ),
    checkpoint("half a checkpoint", half(weights({"weight": torch.ones(999)})), r"not a readable checkpoint .*"),
    checkpoint("a pickle", pickle.dumps(Path("x")), r"not a readable checkpoint .*"),
    checkpoint("a whole module", weights(torch.nn.Linear(2, 2)), r"not a readable checkpoint .*"),
    checkpoint("an empty checkpoint", b"", r"not a readable checkpoint .*"),
    Row(
        "an unknown postprocessor",
        f"{TEST} {{tmp}}/none.ckpt --postprocessor.name ebbo",
        r"command line: postprocessor\.name: unknown 'ebbo'; did you mean 'ebo'\? known are .*",
    ),
    Row(
        "half an artifact",
        f"sample --config {{tiny}} {CACHED} --dream.outliers.seed 9",
        r"{tmp}/dream/space-\w+/embeddings\.safetensors: not a readable safetensors file .*; delete its folder and run again",
        {"dream/space-*/embeddings.safetensors": half},
    ),
    Row(
        "a broken manifest",
        f"space --config {{tiny}} {CACHED}",
        r"{tmp}/dream/space-\w+/manifest\.json: not a readable manifest .*; delete the folder and run again",
        {"dream/space-*/manifest.json": half},
    ),
    Row(
        "a manifest that is a list",
        f"space --config {{tiny}} {CACHED}",
        r"{tmp}/dream/space-\w+/manifest\.json: not a readable manifest .*; delete the folder and run again",
        {"dream/space-*/manifest.json": lambda _: b"[]"},
    ),
    Row(
        "anchors that are broken",
        f"space --config {{tiny}} {CACHED} --dream.space.seed 9",
        r"{tmp}/dream/anchors-\w+/anchors\.safetensors: not a readable safetensors file .*",
        {"dream/anchors-*/anchors.safetensors": half},
    ),
    Row(
        "outliers that are broken",
        f"synthesize --config {{tiny}} {CACHED} --dream.synthesis.seed 9",
        r"{tmp}/dream/outliers-\w+/.*: not a readable .*",
        {"dream/outliers-*/*.parquet": half},
    ),
    Row(
        "weights of the generator that are broken",
        f"synthesize --config {{tiny}} {CACHED} --dream.synthesis.seed 9",
        r"{tmp}/dream/generator-\w+/unet/\w+\.safetensors: not a readable safetensors file .*; delete {tmp}/.* and run again",
        {"dream/generator-*/unet/*.safetensors": half},
    ),
    Row(
        "no image set",
        "verify {tmp}",
        r"{tmp}: no finished image set; expected a folder images-\* that synthesize has finished",
    ),
    Row("verify of nothing", "verify {tmp}/none", r"{tmp}/none: no finished image set; .*"),
    Row(
        "a judge that is not there",
        "synthesize --config {tiny} --dream.quality.checkpoint {tmp}/none.ckpt",
        r"command line: dream\.quality\.checkpoint: no file '{tmp}/none\.ckpt'; expected a checkpoint of network",
    ),
]

# ---------------------------------------------------------------------------------------------------- the command line

CONFIG = "method: base\nseed: 0\nnetwork: {name: n}\ndataset: {name: digits}\npostprocessor: {name: msp}\n"
CSV = "dataset,FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\nnearood,1,99,99,99,90\nfarood,1,99,99,99,90\n"
QUICK = "quickstart --out {tmp}/new"


def run(name: str, config: str | bytes, scores: str | bytes, line: str) -> Row:
    return Row(
        name, "leaderboard {tmp}", r"{tmp}/s0/msp/" + line, {"s0/msp/config.yml": config, "s0/msp/ood.csv": scores}
    )


ARGUMENTS = [
    Row("an unknown command", "trian", r"No such command 'trian'.*"),
    Row("an unknown option", "leaderboard {tmp} --frmat md", r"No such option: --frmat.*"),
    Row("an unknown format", "leaderboard {tmp} --format pdf", r".*--format.*'pdf'.*"),
    Row("no argument", "leaderboard", r"Missing argument 'runs'; see openood-dream leaderboard --help"),
    Row("no config", "train --seed 1", r"train: no config; expected --config A\.yml B\.yml \.\.\."),
    Row("a word too many", f"{TRAIN} --seed 1 2", r"command line: expected --key\.sub value, got '2'"),
    Row("too many seeds", f"{QUICK} --seeds 9", r"--seeds: expected 1 to [0-9]+ \(benchmark\.seeds\), got 9"),
    Row("too few seeds", f"{QUICK} --seeds 0", r"--seeds: expected 1 to [0-9]+ \(benchmark\.seeds\), got 0"),
    Row(
        "seeds that are no number",
        f"{QUICK} --seeds three",
        r"Invalid value for '--seeds': .*; see openood-dream quickstart --help",
    ),
    Row(
        "an unknown method",
        f"{QUICK} --methods base,dreamood",
        r"command line: --methods: unknown 'dreamood'; did you mean 'dream_ood'\? known are .*",
    ),
    Row("no method", f"{QUICK} --methods ,", r"--methods: expected some of .*, got none"),
    Row(
        "no jobs",
        "benchmark --config {tiny} --root {tmp}/new --jobs 0",
        r"Invalid value for '--jobs': .*; see openood-dream benchmark --help",
    ),
    Row(
        "a figure that is no PNG",
        "plot grid --config {tiny} --out {tmp}/a.jpg",
        r"--out: expected a file name that ends in \.png, got '{tmp}/a\.jpg'",
    ),
    Row(
        "an unknown class",
        "plot grid --config {tiny} --class eleven --out {tmp}/a.png",
        r"--class: unknown 'eleven'; .*",
    ),
    Row("no runs", "leaderboard {tmp}", r"{tmp}: no ood\.csv beneath it; expected a folder with evaluated runs"),
    Row(
        "an unknown column",
        "leaderboard {tmp} --sort auroc",
        r"sort: no column 'auroc'; expected one of .*",
        {"s0/msp/config.yml": CONFIG, "s0/msp/ood.csv": CSV},
    ),
    run(
        "a run without seed",
        CONFIG.replace("seed: 0", "seed: x"),
        CSV,
        r"config\.yml: seed: expected an integer, got 'x'",
    ),
    run("a run whose config is broken", "a: [", CSV, r"config\.yml: expected a run's config in YAML: .*"),
    run("a run whose config calls Python", "a: !!python/object/apply:os.system [ls]", CSV, r"config\.yml: .*"),
    run(
        "scores without a row",
        CONFIG,
        CSV.replace("farood", "far"),
        r"ood\.csv: row farood is missing; the evaluation did not finish, run it again",
    ),
    run(
        "scores without a column",
        CONFIG,
        CSV.replace("AUROC", "auc"),
        r"ood\.csv: column AUROC is missing; expected at least .*",
    ),
    run(
        "scores beyond 100",
        CONFIG,
        CSV.replace("99", "990"),
        r"ood\.csv: row nearood, column AUROC: expected a percentage from 0 to 100, got '990'",
    ),
    *(
        Row(
            f"a file in the way of {words.partition(' ')[0]}",
            words + " {tmp}/file/out",
            r"{tmp}/file/out.*: cannot write here \(.*\); choose another folder",
            {"file": "in the way"},
        )
        for words in (
            "train --config {tiny} benchmarks/methods/base.yml --root",
            "benchmark --config {tiny} --root",
            "anchors --config {tiny} --root",
            "quickstart --out",
        )
    ),
]

ROWS = CONFIGS + LISTS + ARTIFACTS + ARGUMENTS


# ------------------------------------------------------------------------------------------------------------- the test


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_bad_input_ends_in_one_line_and_nothing_is_written(row, command, tiny, chain, digits, tmp_path):
    prepare(row, tiny, tmp_path)
    watched = (tmp_path, tiny.root, digits)
    before = tree(*watched)
    done = command(*shlex.split(places(row.words, tiny, tmp_path)))
    assert done.code == 2 and len(done.err) == 1 and done.out == "", done
    line = "openood-dream: error: " + places(row.line, tiny, tmp_path, re.escape)
    assert re.fullmatch(line, done.err[0]), f"{done.err[0]}\ndoes not match\n{line}"
    assert tree(*watched) == before


@pytest.mark.parametrize("which", ["test", "nearood.near_digits", "farood.noise"])
def test_a_broken_image_of_a_test_set(which, command, tiny, digits, tmp_path):
    config = load_config([tiny.file])
    torch.save(get_network(config).state_dict(), tmp_path / "net.ckpt")
    key = f"{'dataset' if which == 'test' else 'ood_dataset'}.{which}"
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("a.png 0\n")
    layers = [tiny.file, "pipelines/test/test_ood.yml", "postprocessors/ebo.yml"]
    lists = [f"--{key}.imglist_pth", tmp_path / "list.txt", f"--{key}.data_dir", tmp_path]
    where = ["--output_dir", tmp_path / "new", "--network.checkpoint", tmp_path / "net.ckpt"]
    done = command("evaluate", "--config", *layers, *where, *lists)
    assert done.code == 2 and len(done.err) == 1, done
    assert done.err[0].startswith(f"openood-dream: error: {tmp_path / 'a.png'}: broken image ("), done
    assert not (tmp_path / "new").exists() or not any(path.is_file() for path in (tmp_path / "new").rglob("*"))


@pytest.mark.parametrize("line", ["two words.png 0", "a.png", "a.png zero", "/a.png 0", "../a.png 0", ""])
def test_a_line_that_openood_would_stumble_over_is_named_before_it_runs(line, tmp_path):
    (tmp_path / "list.txt").write_text(f"a.png 0\nb.png {{'label': 3}}\n{line}\n")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'list.txt'}:3: ")):
        check_imglist(str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text("a.png 0\r\nb.png {'label': 3}\na/b.png -1\n")
    check_imglist(str(tmp_path / "list.txt"))


# -------------------------------------------------------------------------------------- what is odd, and nothing wrong


def test_names_with_spaces_crlf_and_a_mark_of_byte_order_are_read(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa b/c  d.png 3\r\n\r\nö 1.png  -1 \r\nsub/../e.png +2".encode())
    assert store.read_imglist(tmp_path / "list.txt") == [("a b/c  d.png", 3), ("ö 1.png", -1), ("sub/../e.png", 2)]


def test_an_image_whose_name_has_spaces_is_trained_with(command, tiny, tmp_path):
    (tmp_path / "images" / "ring tailed lemur").mkdir(parents=True)
    rows = []
    for label in range(6):
        rows.append((f"ring tailed lemur/no. {label} (1).png", label))
        (tmp_path / "images" / rows[-1][0]).write_bytes(png())
    store.write_imglist(tmp_path / "list.txt", rows)
    lists = ["--dataset.train.imglist_pth", tmp_path / "list.txt", "--dataset.train.data_dir", tmp_path / "images"]
    layers = [tiny.file, "benchmarks/methods/base.yml"]
    assert command("train", "--config", *layers, "--root", tmp_path / "new", *lists).code == 0


def test_a_list_of_100000_lines_is_read_in_order(tmp_path):
    rows = [(f"some class/{number:06d}.png", number % 1000) for number in range(100_000)]
    store.write_imglist(tmp_path / "list.txt", rows)
    assert store.read_imglist(tmp_path / "list.txt") == rows


@pytest.mark.parametrize("name", ["..a/b.png", "a/..b.png", "./a.png", "a/../b.png", "..."])
def test_dots_that_do_not_lead_out_of_the_data_folder(name, tmp_path):
    (tmp_path / "list.txt").write_text(f"{name} 0\n")
    assert store.read_imglist(tmp_path / "list.txt") == [(name, 0)]
