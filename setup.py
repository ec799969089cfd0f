"""Packaging of openood-dream: `pip install .`, with extras gpu, ray, umap, bench and dev."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "openood_dream" / "_version.py").read_text()).group(1)

setup(
    name="openood-dream",
    version=VERSION,
    description="Imagine out-of-distribution images with diffusion models, and prove under OpenOOD's protocol what they are worth",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # The configs lie beside the package in a checkout, and inside it once installed.
    packages=[*find_packages(include=["openood_dream", "openood_dream.*"]), "openood_dream.configs"],
    py_modules=["pytest_openood_dream"],
    package_dir={"openood_dream.configs": "configs"},
    package_data={
        "openood_dream": ["py.typed", "reports/report.html.j2"],
        "openood_dream.configs": ["**/*.yml", "**/*.txt"],
    },
    install_requires=[
        "accelerate>=1.15",
        "diffusers>=0.41",
        "faiss-cpu>=1.15",
        "filelock>=3.29",
        "huggingface-hub>=2.4",
        "jinja2>=3.1.6",
        "matplotlib>=3.10",
        "numpy>=2.2",
        "packaging>=26",
        "pandas>=2.3",
        "pillow>=12.3",
        "pyarrow>=25",
        "pydantic>=2.14",
        "pytorch-ood>=0.4",
        "pyyaml>=6.0.3",
        "rich>=15",
        "safetensors>=0.8",
        "scikit-learn>=1.7",
        "scipy>=1.15",
        "timm>=1.0.31",
        "tokenizers>=0.23.1",
        "torch>=2.14",
        "torchvision>=0.29",
        "tqdm>=4.70",
        "transformers>=5.20",
        "typer>=0.29",
    ],
    extras_require={
        "gpu": ["faiss-gpu-cu12>=1.8"],
        "ray": ["ray>=2.60"],
        "bench": ["pytest>=9", "pytest-benchmark>=5.2"],
        "umap": ["umap-learn>=0.5.12"],
        "dev": [
            "bandit>=1.9.4",
            "hypothesis>=6.168",
            "ipykernel>=7.4",
            "mypy>=2.4.1",
            "nbclient>=0.11",
            "nbformat>=5.11.1",
            "pandas-stubs>=3.1.0.261029",
            "pytest>=9",
            "pytest-benchmark>=5.2",
            "pytest-xdist>=3.8",
            "ray>=2.60",
            "ruff>=0.16",
            "types-PyYAML>=6.0.12.20261113",
            "types-tqdm>=4.70.0.20261106",
        ],
    },
    entry_points={
        "console_scripts": ["openood-dream = openood_dream.cli:main"],
        "pytest11": ["openood_dream.bench = pytest_openood_dream"],
    },
)
