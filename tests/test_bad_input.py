"""Bad input ends in exit code 2 and one line that begins with file and key, before anything is written."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from rows import SCORE, SPACE, TRAIN, Row, half, key, layer, png, rejected, weights

from openood_dream.datasets.imglist import read_imglist, write_imglist
from openood_dream.errors import InputError
from openood_dream.experiment import load_config
from openood_dream.networks.factory import get_network
from openood_dream.openood.host import check_imglist

# --------------------------------------------------------------------------------------------------- the configs

CONFIGS = [
    *(
        Row(
            f"no such config, {command}",
            f"{command} --config benchmarks/digit.yml",
            r"benchmarks/digit\.yml: ",
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
            "outliers",
            "imagine",
            "plot grid",
        )
    ),
    Row("a folder as config", "train --config {tmp}", r"{tmp}: "),
    layer(
        "a list that is not closed",
        "a: [1, 2\nb: 3\n",
        r":2:2: ",
    ),
    layer("tabs", "dream:\n\toutliers: {k: 3}\n", r":2:1: "),
    layer("no mapping", "just words\n", ": expected a mapping of settings at the top level, got 'just words'"),
    layer("a list of mappings", "- a: 1\n- b: 2\n", r": expected a mapping of settings at the top level, got \[.*\]"),
    layer("empty", "", ": expected a mapping of settings at the top level, got an empty file"),
    layer("not UTF-8", "dream: {class_names: [größe]}".encode("latin-1"), r": expected UTF-8 text, got byte 0xf6"),
    layer("binary", png(), r": expected UTF-8 text, got byte 0x89"),
    layer("a key twice", "seed: 1\ndevice: cpu\nseed: 2\n", r":3:1: "),
    layer("a number as key", "seed: 1\n3: 2\n", r":2:1: "),
    layer("a reference without quotes", "a: @{seed}\n", r":1:4: "),
    layer(
        "a reference to no key",
        "a: '@{optimiser.lr}'\n",
        r": a: ",
    ),
    layer("a reference to itself", "a: '@{b}'\nb: '@{a}'\n", r": .*leads back to itself \(.*\)"),
    layer("includes itself", "include: [layer.yml]\n", r": include: layer\.yml leads back to itself \(.*\)"),
    layer("an include loop", "include: [b.yml]\n", "", b="include: [layer.yml]\n")._replace(
        line=r"{tmp}/b\.yml: include: layer\.yml leads back to itself \({tmp}/layer\.yml -> {tmp}/b\.yml -> {tmp}/layer\.yml\)"
    ),
    layer(
        "includes no file",
        "include: [bsae.yml]\n",
        r": include: bsae\.yml: ",
        base="{a: 1}",
    ),
    layer("includes text", "include: base.yml\n", r": include: "),
    layer("a data set with a long name", f"dataset: {{name: {'x' * 300}}}", r": dataset\.name: .*got 300: "),
    layer(
        "a test set with a long name",
        f"ood_dataset: {{nearood: {{datasets: [{'x' * 300}]}}}}",
        r": ood_dataset\.nearood\.datasets: .*got 300: ",
    ),
    layer("a long label", f"benchmark: {{methods: {{{'x' * 300}: [a.yml]}}}}", r": benchmark\.methods: .*got 300: "),
    layer("a label like a formula", "benchmark: {methods: {=1+1: [a.yml]}}", r": benchmark\.methods: .*= \+ - @"),
    layer("a long name in a path", f"dream: {{cache_dir: /tmp/{'x' * 300}/out}}", r": dream\.cache_dir: .*got 300: "),
    layer("an escape in a name", 'dataset: {name: "\\e[31mred"}', r":1:17: the control character #x1b"),
    layer("two lines in a name", 'dataset: {name: "a\\nb"}', r": dataset\.name: "),
    layer("an unknown key", "dream: {outlier: {k: 3}}", r": dream\.outlier: "),
    layer(
        "an unknown key below",
        "dream: {outliers: {sgima: 0.1}}",
        r": dream\.outliers\.sgima: ",
    ),
    layer(
        "an unknown key of the generator",
        "dream: {generator: {train: small, step: 5}}",
        r": dream\.generator\.step: ",
    ),
    layer("an unknown section", "dreams: {}", r": dreams: "),
    layer(
        "a test set that is named twice",
        "ood_dataset: {farood: {datasets: [scrambled, near_digits], near_digits: {imglist_pth: a.txt, data_dir: .}}}",
        r": ood_dataset\.farood\.datasets: ",
    ),
    layer(
        "a group that tables have another name for",
        "ood_dataset: {near: {datasets: [a], a: {imglist_pth: a.txt, data_dir: .}}}",
        r": ood_dataset\.near: ",
    ),
    layer(
        "an unknown key of the trainer",
        "trainer: {name: oe, lambda: 1.0}",
        r": trainer\.lambda: ",
    ),
    layer(
        "an unknown key of the benchmark",
        "benchmark: {seed: [1]}",
        r": benchmark\.seed: ",
    ),
    layer("an unknown key at the top", "divice: cpu", r": divice: "),
    layer(
        "a list where a mapping belongs",
        "dream: [outliers, space]",
        r": dream: ",
    ),
    layer(
        "text where a mapping belongs",
        "dream: {space: resnet18}",
        r": dream\.space: ",
    ),
    layer("dataset is a list", "dataset: [a]", r": dataset: "),
    layer("optimizer is text", "optimizer: sgd", r": optimizer: "),
    layer("network is text", "network: resnet18", r": network: "),
    layer("preprocessor is text", "preprocessor: base", r": preprocessor: "),
    layer("a split is text", "dataset: {train: train.txt}", r": dataset\.train: "),
    layer("a trainer is text", "trainer: base", r": trainer: "),
    layer("a seed as text", "seed: 'one'", r": seed: "),
    layer("a seed as list", "seed: [1, 2]", r": seed: "),
    layer("not a number", "dream: {outliers: {sigma: .nan}}", r": dream\.outliers\.sigma: "),
    layer("yes for a number", "optimizer: {num_epochs: yes}", r": optimizer\.num_epochs: "),
    Row(
        "an unknown key on the command line",
        f"{TRAIN} --optimizer.learning_rate 1",
        r"command line: optimizer\.learning_rate: ",
    ),
    key("dream.space.epoch 1", r"dream\.space\.epoch: "),
    key("worker_gpus 1.5", r"worker_gpus: "),
    key("evaluator.name food", r"evaluator\.name: "),
    key("recorder.name bass", r"recorder\.name: "),
    key("dataset.channels 2", r"dataset\.channels: "),
    key("optimizer.schedule cosin", r"optimizer\.schedule: "),
    key("preprocessor.horizontal_flip maybe", r"preprocessor\.horizontal_flip: "),
    key("seed", r"seed: "),
    key("seed [1", r"seed: "),
    key("dream.outliers.k many", r"dream\.outliers\.k: "),
    key("dream.outliers.k 0", r"dream\.outliers\.k: "),
    key("dream.outliers.sigma -1", r"dream\.outliers\.sigma: "),
    key("dream.outliers.method kn", r"dream\.outliers\.method: "),
    key("dream.outliers.keep 900", r"dream\.outliers\.keep: "),
    key("dream.space.epochs 2.5", r"dream\.space\.epochs: "),
    key("dream.synthesis.prompt 'a digit'", r"dream\.synthesis\.prompt: "),
    key(
        "dream.synthesis.size 100",
        r"dream\.synthesis\.size: ",
    ),
    key("dream.synthesis.scheduler dpm", r"dream\.synthesis\.scheduler: ", SPACE),
    key("dream.filter.confidence 2", r"dream\.filter\.confidence: "),
    key("device gpu", r"device: "),
    Row(
        "a GPU that is not there", f"{TRAIN} --device cuda:99", r"device: 'cuda:99' cannot be used here .*; expected .*"
    ),
    key("precision half", r"precision: "),
    key("backend torch", r"backend: "),
    key("trainer.name oee", r"trainer\.name: "),
    key("network.name timm:resnet19", r"network\.name: "),
    key(
        "network.name resnet18",
        r"network\.name: ",
    ),
    key("network.args '{channels: eight}'", r"network\.args\.channels: "),
    key("network.args 8", r"network\.args: "),
    key(
        "dream.space.network timm:resnet19",
        r"dream\.space\.network: ",
        SPACE,
    ),
    key("dataset.num_classes six", r"dataset\.num_classes: "),
    key("dataset.image_size 0", r"dataset\.image_size: "),
    key("dataset.train.batch_size many", r"dataset\.train\.batch_size: "),
    key("dataset.interpolation cubic", r"dataset\.interpolation: "),
    key("dataset.make mnist", r"dataset\.make: "),
    key("dataset.num_workers many", r"dataset\.num_workers: "),
    key("optimizer.num_epochs ten", r"optimizer\.num_epochs: "),
    key("optimizer.num_epochs 0", r"optimizer\.num_epochs: "),
    key("optimizer.lr fast", r"optimizer\.lr: "),
    key(
        "optimizer.momentum null",
        r"optimizer\.momentum: ",
    ),
    Row(
        "no validation list",
        f"{SPACE} --dataset.val null",
        r"command line: dataset\.val: ",
    ),
    key(
        "dream.synthesis.size 512",
        r"dream\.synthesis\.size: ",
        SPACE.replace("space", "imagine", 1),
    ),
    *(
        key(f"postprocessor.postprocessor_args.{words}", rf"postprocessor\.postprocessor_args\.{line}", SCORE)
        for words, line in {
            "K 0": r"K: ",
            "K many": r"K: ",
        }.items()
    ),
    key("optimizer.clip_norm 0", r"optimizer\.clip_norm: "),
    layer(
        "RandAugment beyond its strength",
        "preprocessor: {name: randaugment, n: 1, m: 99}",
        r": preprocessor\.m: ",
    ),
    key("preprocessor.horizontal_flip maybe", r"preprocessor\.horizontal_flip: "),
    Row(
        "an unknown pipeline",
        "run --config {tiny} --pipeline.name trian --root {tmp}/new",
        r"command line: pipeline\.name: ",
    ),
    Row(
        "a data set without a name",
        f"{TRAIN} --dataset.name ''",
        r"command line: dataset\.name: ",
    ),
    Row("a benchmark without one", "benchmark --config {tiny} --benchmark null", r"command line: benchmark: "),
    Row(
        "seeds twice",
        "benchmark --config {tiny} --benchmark.seeds '[1, 1]' --root {tmp}/new",
        r"command line: benchmark\.seeds: ",
    ),
    Row(
        "no seeds",
        "benchmark --config {tiny} --benchmark.seeds '[]' --root {tmp}/new",
        r"command line: benchmark\.seeds: ",
    ),
    Row(
        "an unknown detector",
        "benchmark --config {tiny} --benchmark.postprocessors '[mps]' --root {tmp}/new",
        r".*postprocessors/mps\.yml: no such file, .*",
    ),
    layer(
        "a label that leaves the folder",
        "benchmark: {methods: {../x: [a.yml]}}",
        r": benchmark\.methods: ",
    ),
]

# -------------------------------------------------------------------------------------------- image lists and images

ONE = "digits/train/zero/0000.png"
LIST = f"{TRAIN} --dataset.train.imglist_pth {{tmp}}/list.txt"
IMAGES = f"{LIST} --dataset.train.data_dir {{tmp}}"


def imglist(name: str, content: str | bytes, line: str, words: str = LIST) -> Row:
    return Row(name, words, r"{tmp}/list\.txt" + line, {"list.txt": content})


def image(name: str, content: bytes, line: str, words: str = IMAGES) -> Row:
    return Row(
        name,
        words,
        r"{tmp}/a b\.png: " + line,
        {"a b.png": content, "list.txt": "".join(f"a b.png {label}\n" for label in range(6))},
    )


OUTSIDE = r": image '{}' leaves the data folder; expected a path below data_dir, relative to it"
LISTS = [
    *(
        Row(
            f"no {split} list",
            f"{TRAIN} --dataset.{split}.imglist_pth {{tmp}}/none.txt",
            r"{tmp}/none\.txt: ",
        )
        for split in ("train", "val")
    ),
    Row(
        "no outlier list",
        "train --config {tiny} pipelines/train/oe.yml datasets/digits/digits_oe.yml --root {tmp}/new"
        " --dataset.oe.imglist_pth {tmp}/none.txt",
        r"{tmp}/none\.txt: ",
    ),
    Row(
        "no list for the space",
        f"{SPACE} --dataset.train.imglist_pth {{tmp}}/none.txt",
        r"{tmp}/none\.txt: ",
    ),
    Row(
        "no test list of a benchmark",
        "benchmark --config {tiny} --root {tmp}/new --ood_dataset.nearood.near_digits.imglist_pth {tmp}/none.txt",
        r"{tmp}/none\.txt: ",
    ),
    Row(
        "a list that is a folder",
        f"{TRAIN} --dataset.train.imglist_pth {{tmp}}",
        r"{tmp}: ",
    ),
    Row(
        "a list that is a number",
        f"{TRAIN} --dataset.train.imglist_pth 3",
        r"3: no such image list \(dataset\.train\.imglist_pth\)",
    ),
    imglist("an empty list", "", r": the image list is empty \(dataset\.train\.imglist_pth\).*"),
    imglist("blank lines alone", "\n\r\n \n", r": the image list is empty \(dataset\.train\.imglist_pth\).*"),
    imglist(
        "a list that is not UTF-8",
        f"{ONE} 0\ngröße.png 0\n".encode("latin-1"),
        r":2: ",
    ),
    imglist(
        "a line without a label",
        f"{ONE} 0\ndigits/train/zero/0001.png\n",
        r":2: ",
    ),
    imglist("a label that is a name", f"{ONE} zero\n", r":1: "),
    imglist(
        "a label that is no whole number",
        f"{ONE} 0.0\n",
        r":1: ",
    ),
    imglist("a label alone, CRLF", f"{ONE} 0\r\n0\r\n", r":2: "),
    imglist("commas", f"{ONE},0\n", r":1: "),
    imglist("tabs in a list", f"{ONE}\t0\n", r":1: "),
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
    imglist("a label of many digits", f"{ONE} {10**30}\n", r":1: "),
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
    Row("a text file as image", IMAGES, r"{tmp}/list\.txt: ", {"list.txt": "list.txt 0\n"}),
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
        r"dream\.class_names: ",
        ANCHORS,
    ),
    Row(
        "too few lines of class names",
        f"{ANCHORS} --dream.class_names {{tmp}}/names.txt",
        r"command line: dream\.class_names: ",
        {"names.txt": "zero\none\n"},
    ),
    Row(
        "class names that are not UTF-8",
        f"{ANCHORS} --dream.class_names {{tmp}}/names.txt",
        r"command line: dream\.class_names: {tmp}/names\.txt: ",
        {"names.txt": "größe\n".encode("latin-1")},
    ),
    Row(
        "a class name twice in a file",
        f"{ANCHORS} --dream.class_names {{tmp}}/names.txt",
        r"command line: dream\.class_names: {tmp}/names\.txt: ",
        {"names.txt": "a\na\nb\nc\nd\ne\n"},
    ),
    Row(
        "no file of class names",
        f"{ANCHORS} --dream.class_names {{tmp}}/none.txt",
        r"command line: dream\.class_names: ",
    ),
    key(
        "dream.class_names '[a, a, b, c, d, e]'",
        r"dream\.class_names: ",
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
        "outliers --config {tiny} --dream.outliers.k 30",
        r".*dream\.outliers\.k: 30 is not below 30.*lower k.*",
    ),
    Row(
        "k of more embeddings",
        "outliers --config {tiny} --dream.outliers.k 5000 --root {tmp}/new",
        r".*dream\.outliers\.k: 5000 is not below 30.*lower k.*",
    ),
    Row(
        "an empty generator",
        f"{ANCHORS} --dream.generator {{tmp}}",
        r"command line: dream\.generator: ",
    ),
    Row(
        "no generator",
        f"{ANCHORS} --dream.generator {{tmp}}/none",
        r"command line: dream\.generator: ",
    ),
    Row(
        "an unknown size of generator",
        f"{ANCHORS} --dream.generator '{{train: large}}'",
        r"command line: dream\.generator\.train: ",
    ),
    Row(
        "a generator without its parts",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"command line: dream\.generator: ",
        {"sd/model_index.json": index()},
    ),
    Row(
        "a generator without a UNet",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"command line: dream\.generator: ",
        {"sd/model_index.json": index(unet=[None, None])},
    ),
    Row(
        "a generator whose index is none",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"command line: dream\.generator: ",
        {"sd/model_index.json": "{"},
    ),
    Row(
        "a generator whose index is a list",
        f"{ANCHORS} --dream.generator {{tmp}}/sd",
        r"command line: dream\.generator: ",
        {"sd/model_index.json": "[]"},
    ),
    Row(
        "a hub id without network",
        f"{ANCHORS} --dream.generator nobody/nothing",
        r"command line: dream\.generator: ",
    ),
    Row(
        "no checkpoint",
        f"{TEST} {{tmp}}/none.ckpt",
        r"{tmp}/none\.ckpt: ",
    ),
    Row("a folder as checkpoint", f"{TEST} {{tmp}}", r"{tmp}: "),
    checkpoint(
        "a checkpoint of another network",
        weights({"weight": torch.ones(3)}),
        r"the weights",
    ),
    checkpoint(
        "a checkpoint that is a list",
        weights([torch.ones(3)]),
        r"expected tensors",
    ),
    checkpoint("half a checkpoint", half(weights({"weight": torch.ones(999)})), r"not a readable checkpoint .*"),
    checkpoint("a pickle", pickle.dumps(Path("x")), r"not a readable checkpoint .*"),
    checkpoint("a whole module", weights(torch.nn.Linear(2, 2)), r"not a readable checkpoint .*"),
    checkpoint("an empty checkpoint", b"", r"not a readable checkpoint .*"),
    Row(
        "an unknown postprocessor",
        f"{TEST} {{tmp}}/none.ckpt --postprocessor.name ebbo",
        r"command line: postprocessor\.name: ",
    ),
    Row(
        "half an artifact",
        f"outliers --config {{tiny}} {CACHED} --dream.outliers.seed 9",
        r"{tmp}/dream/space-resnet10t-10epochs-\w+/embeddings\.safetensors: ",
        {"dream/space-*/embeddings.safetensors": half},
    ),
    Row(
        "a broken manifest",
        f"space --config {{tiny}} {CACHED}",
        r"{tmp}/dream/space-resnet10t-10epochs-\w+/manifest\.json: ",
        {"dream/space-*/manifest.json": half},
    ),
    Row(
        "a manifest that is a list",
        f"space --config {{tiny}} {CACHED}",
        r"{tmp}/dream/space-resnet10t-10epochs-\w+/manifest\.json: ",
        {"dream/space-*/manifest.json": lambda _: b"[]"},
    ),
    Row(
        "anchors that are broken",
        f"space --config {{tiny}} {CACHED} --dream.space.seed 9",
        r"{tmp}/dream/anchors-6classes-\w+/anchors\.safetensors: ",
        {"dream/anchors-*/anchors.safetensors": half},
    ),
    Row(
        "outliers that are broken",
        f"imagine --config {{tiny}} {CACHED} --dream.synthesis.seed 9",
        r"{tmp}/dream/outliers-knn-sigma0\.15-\w+/.*: ",
        {"dream/outliers-*/*.parquet": half},
    ),
    Row(
        "weights of the generator that are broken",
        f"imagine --config {{tiny}} {CACHED} --dream.synthesis.seed 9",
        r"{tmp}/dream/generator-small-30steps-\w+/unet/\w+\.safetensors: ",
        {"dream/generator-*/unet/*.safetensors": half},
    ),
    Row(
        "no image set",
        "verify {tmp}",
        r"{tmp}: ",
    ),
    Row("verify of nothing", "verify {tmp}/none", r"{tmp}/none: "),
    Row(
        "a judge that is not there",
        "imagine --config {tiny} --dream.quality.checkpoint {tmp}/none.ckpt",
        r"command line: dream\.quality\.checkpoint: ",
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
    Row("no argument", "leaderboard", r"Missing argument '(?i:runs)(\.\.\.)?'; see openood-dream leaderboard --help"),
    Row("no config", "train --seed 1", r"train: "),
    Row("a word too many", f"{TRAIN} --seed 1 2", r"command line: "),
    Row("too many seeds", f"{QUICK} --seeds 9", r"--seeds: "),
    Row("too few seeds", f"{QUICK} --seeds 0", r"--seeds: "),
    Row(
        "seeds that are no number",
        f"{QUICK} --seeds three",
        r"Invalid value for '--seeds': ",
    ),
    Row(
        "an unknown method",
        f"{QUICK} --methods base,dreamood",
        r"command line: --methods: ",
    ),
    Row("no method", f"{QUICK} --methods ,", r"--methods: "),
    Row(
        "no jobs",
        "benchmark --config {tiny} --root {tmp}/new --jobs 0",
        r"Invalid value for '--jobs': ",
    ),
    Row(
        "a figure that is no PNG",
        "plot grid --config {tiny} --out {tmp}/a.jpg",
        r"--out: ",
    ),
    Row(
        "an unknown class",
        "plot grid --config {tiny} --class eleven --out {tmp}/a.png",
        r"--class: ",
    ),
    Row("no runs", "leaderboard {tmp}", r"{tmp}: "),
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
        r"config\.yml: seed: ",
    ),
    run("a run whose config is broken", "a: [", CSV, r"config\.yml: "),
    run("a run whose config calls Python", "a: !!python/object/apply:os.system [ls]", CSV, r"config\.yml: "),
    run(
        "scores without a row",
        CONFIG,
        CSV.replace("farood", "far"),
        r"ood\.csv: ",
    ),
    run(
        "scores without a column",
        CONFIG,
        CSV.replace("AUROC", "auc"),
        r"ood\.csv: ",
    ),
    run(
        "scores beyond 100",
        CONFIG,
        CSV.replace("99", "990"),
        r"ood\.csv: ",
    ),
    *(
        Row(
            f"a file in the way of {words.partition(' ')[0]}",
            words + " {tmp}/file/out",
            r"{tmp}/file/out.*: ",
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
def test_bad_input(row, command, tiny, dream, digits, tmp_path):
    rejected(row, command, tiny, digits, tmp_path)


@pytest.mark.parametrize("which", ["test", "nearood.near_digits", "farood.scrambled"])
def test_broken_image_of_a_test_set(which, command, tiny, digits, tmp_path):
    config = load_config([tiny.file])
    torch.save(get_network(config.network, image_size=config.dataset.image_size).state_dict(), tmp_path / "net.ckpt")
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
def test_line_that_openood_cannot_read(line, tmp_path):
    (tmp_path / "list.txt").write_text(f"a.png 0\nb.png {{'label': 3}}\n{line}\n")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'list.txt'}:3: ")):
        check_imglist(str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text("a.png 0\r\nb.png {'label': 3}\na/b.png -1\n")
    check_imglist(str(tmp_path / "list.txt"))


# -------------------------------------------------------------------------------------- what is odd, and nothing wrong


def test_spaces_crlf_and_byte_order_mark(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa b/c  d.png 3\r\n\r\nö 1.png  -1 \r\nsub/../e.png +2".encode())
    assert read_imglist(tmp_path / "list.txt") == [("a b/c  d.png", 3), ("ö 1.png", -1), ("sub/../e.png", 2)]


def test_image_names_with_spaces(command, tiny, tmp_path):
    (tmp_path / "images" / "ring tailed lemur").mkdir(parents=True)
    rows = []
    for label in range(6):
        rows.append((f"ring tailed lemur/no. {label} (1).png", label))
        (tmp_path / "images" / rows[-1][0]).write_bytes(png())
    write_imglist(tmp_path / "list.txt", rows)
    lists = ["--dataset.train.imglist_pth", tmp_path / "list.txt", "--dataset.train.data_dir", tmp_path / "images"]
    layers = [tiny.file, "benchmarks/methods/base.yml"]
    assert command("train", "--config", *layers, "--root", tmp_path / "new", *lists).code == 0


def test_long_list(tmp_path):
    rows = [(f"some class/{number:06d}.png", number % 1000) for number in range(100_000)]
    write_imglist(tmp_path / "list.txt", rows)
    assert read_imglist(tmp_path / "list.txt") == rows


@pytest.mark.parametrize("name", ["..a/b.png", "a/..b.png", "./a.png", "a/../b.png", "..."])
def test_dots_in_names(name, tmp_path):
    (tmp_path / "list.txt").write_text(f"{name} 0\n")
    assert read_imglist(tmp_path / "list.txt") == [(name, 0)]
