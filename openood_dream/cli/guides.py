"""What the help of each command ends with: its main config keys, and examples that work."""

from __future__ import annotations

from typing import Any

CIFAR10 = "datasets/cifar10/cifar10.yml networks/timm_resnet18.yml"

# by command: its keys, and command lines without the word openood-dream; what is too long for a line is broken in two
GUIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "init": (
        "root, dataset.train, ood_dataset.nearood, ood_dataset.farood, dream.class_names",
        (
            "init --data photos/ > my.yml",
            "init --data photos/ --ood others/ --root results/photos > my.yml",
        ),
    ),
    "quickstart": ("", ("quickstart", "quickstart --seeds 1 --methods all --out results/all")),
    "run": (
        "pipeline.name, backend, dataset.name, network.name, trainer.name, output_dir, seed",
        (
            "run --config benchmarks/digits.yml",
            f"run --config {CIFAR10} \\\n      pipelines/train/dream_ood.yml preprocessors/dream.yml --seed 0",
        ),
    ),
    "benchmark": (
        "benchmark.methods, benchmark.seeds, benchmark.postprocessors, benchmark.vary, root, data_root",
        (
            "benchmark --config benchmarks/digits.yml --methods base,oe --seeds 1",
            "benchmark --data photos/ --ood others/",
        ),
    ),
    "job": (
        "benchmark.methods, benchmark.postprocessors, root, device",
        (
            "job --config benchmarks/digits.yml --method oe --seed 0",
            "job --config benchmarks/cifar10.yml --method dream_ood --seed 1 --device cuda:0",
        ),
    ),
    "train": (
        "trainer.name, network.name, optimizer.num_epochs, optimizer.lr, dataset.train.batch_size, seed, output_dir",
        (
            "train --config benchmarks/digits.yml benchmarks/methods/base.yml --seed 1",
            f"train --config {CIFAR10} \\\n      pipelines/train/dream_ood.yml preprocessors/dream.yml --trainer.beta 2",
        ),
    ),
    "evaluate": (
        "network.checkpoint, postprocessor.name, postprocessor.APS_mode, ood_dataset.nearood, evaluator.ood_scheme, "
        "output_dir",
        (
            f"evaluate --config {CIFAR10} datasets/cifar10/cifar10_ood.yml \\\n"
            "      pipelines/test/test_ood.yml postprocessors/ebo.yml --network.checkpoint best.ckpt",
            f"evaluate --evaluator openood --config {CIFAR10} \\\n"
            "      pipelines/test/test_ood.yml postprocessors/react.yml --network.checkpoint best.ckpt",
        ),
    ),
    "predict": (
        "",
        (
            "predict --run results/digits/runs/base/s0 photos/",
            "predict --run results/digits/runs/base/s0 --postprocessor knn --keep 0.9 --format csv one.png two.png",
        ),
    ),
    "anchors": (
        "dream.class_names, dream.generator, dream.synthesis.prompt",
        (
            "anchors --config benchmarks/digits.yml",
            "anchors --config synthesis/cifar10.yml --dream.class_names '[plane, car, bird, cat, deer, dog, frog, horse, ship, truck]'",
        ),
    ),
    "space": (
        "dream.space.network, dream.space.epochs, dream.space.lr, dream.space.temperature, dream.space.seed",
        ("space --config benchmarks/digits.yml", "space --config benchmarks/digits.yml --dream.space.epochs 40"),
    ),
    "generator": (
        "dream.generator.train, dream.generator.steps, dream.generator.unet_channels, dream.generator.lr",
        (
            "generator --config benchmarks/digits.yml",
            "generator --config benchmarks/digits.yml --dream.generator.steps 2000",
        ),
    ),
    "outliers": (
        "dream.outliers.method, dream.outliers.sigma, dream.outliers.k, dream.outliers.select, dream.outliers.seed",
        (
            "outliers --config benchmarks/digits.yml",
            "outliers --config benchmarks/digits.yml --dream.outliers.method boundary",
        ),
    ),
    "imagine": (
        "dream.synthesis.per_class, dream.synthesis.guidance, dream.synthesis.steps, dream.generator, "
        "dream.outliers.method, dream.filter, dream.quality, dream.cache_dir",
        (
            "imagine --config benchmarks/digits.yml --dry-run",
            "imagine --config benchmarks/digits.yml --dream.outliers.sigma 0.3",
            "imagine --data photos/",
        ),
    ),
    "verify": (
        "",
        ("verify results/dream/latest/images", "verify --quiet results/dream/images-knn-sigma0.15-0123abcd"),
    ),
    "leaderboard": (
        "",
        (
            "leaderboard results/digits --sort near_fpr95",
            "leaderboard results/digits --format md --out table.md",
        ),
    ),
    "config": (
        "",
        (
            "config dream.outliers trainer.npos postprocessor.knn.K",
            "config trainer --config benchmarks/digits.yml pipelines/train/dream_ood.yml",
            "config --config benchmarks/digits.yml --seed 3",
        ),
    ),
    "doctor": ("", ("doctor", "doctor > doctor.txt")),
    "plot": (
        "dream.space, dream.outliers, dream.synthesis, dream.cache_dir",
        (
            "plot embeddings --config benchmarks/digits.yml",
            "plot grid --config benchmarks/digits.yml --class five",
        ),
    ),
    "plot embeddings": (
        "dream.space, dream.outliers.method, dream.outliers.sigma, dream.cache_dir",
        (
            "plot embeddings --config benchmarks/digits.yml --class five --method umap",
            "plot embeddings --config benchmarks/digits.yml --outliers knn,boundary --out plane.png",
        ),
    ),
    "plot grid": (
        "dream.synthesis, dream.outliers.method, dream.outliers.sigma, dream.cache_dir",
        (
            "plot grid --config benchmarks/digits.yml --class five --class two",
            "plot grid --config benchmarks/digits.yml --outliers knn,pipelines/train/dream_id.yml",
        ),
    ),
    "plot line": (
        "dream.synthesis, dream.generator, dream.cache_dir",
        (
            "plot line --config benchmarks/digits.yml --class five",
            "plot line --config benchmarks/digits.yml --out line.png",
        ),
    ),
}


def guide(name: str) -> dict[str, Any]:
    """The end of a command's help, for its decorator."""
    keys, examples = GUIDES[name]
    main = f"Main keys, explained by openood-dream config KEY: {keys}\n\n" if keys else ""
    return {"epilog": "\n".join([f"{main}\b", "Examples:", *(f"  openood-dream {example}" for example in examples)])}
