"""Packaging of openood-dream: which packages it needs, and its files. All else stands in pyproject.toml."""

from setuptools import find_packages, setup

# figures, and with them the report; tables work without
REPORT = ["matplotlib>=3.8"]
FAISS = ["faiss-cpu>=1.8"]
LORA = ["peft>=0.13"]
RAY = ["ray>=2.40"]
UMAP = ["umap-learn>=0.5.7"]
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]

setup(
    # The configs lie beside the package in a checkout, and inside it once installed.
    packages=[*find_packages(include=["openood_dream", "openood_dream.*"]), "openood_dream.configs"],
    py_modules=["pytest_openood_dream"],
    package_dir={"openood_dream.configs": "configs"},
    package_data={
        "openood_dream": ["py.typed", "reports/report.html.j2", "reports/report.css", "reports/report.js"],
        "openood_dream.configs": ["**/*.yml", "**/*.txt"],
    },
    # `make lowest` installs the lowest version of each and runs the tests with them.
    install_requires=[
        "accelerate>=1.0",
        "diffusers>=0.32",
        "filelock>=3.13",
        "huggingface-hub>=0.26",
        "jinja2>=3.1.2",
        "numpy>=1.26",
        "packaging>=23.2",
        "pandas>=2.2",
        "pillow>=10.3",
        "pyarrow>=16.1",
        "pydantic>=2.9",
        "pytorch-ood>=0.4",
        "pyyaml>=6.0.1",
        "rich>=13.7",
        "safetensors>=0.4.3",
        "scikit-learn>=1.4",
        "scipy>=1.12",
        "timm>=1.0.9",
        "tokenizers>=0.20",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.66",
        "transformers>=4.46.1",
        "typer>=0.15.4",
    ],
    extras_require={
        "report": REPORT,
        "faiss": FAISS,
        "gpu": ["faiss-gpu-cu12>=1.8"],  # without the extra faiss: of both packages Python finds one
        "lora": LORA,
        "ray": RAY,
        "umap": UMAP,
        "bench": ["pytest>=8.3", "pytest-benchmark>=4"],
        "docs": DOCS,
        "dev": [
            *REPORT,
            *FAISS,
            *LORA,
            *RAY,
            "bandit>=1.7.9",
            "hypothesis>=6.112",
            "ipykernel>=6.29",
            "mypy>=1.11",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pandas-stubs>=2.2.2.240807",
            "pytest>=8.3",
            "pytest-benchmark>=4",
            "pytest-xdist>=3.6.1",
            "ruff>=0.16",
            "types-PyYAML>=6.0.12.20240917",
            "types-tqdm>=4.66.0.20240417",
        ],
    },
)
