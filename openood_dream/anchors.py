"""Anchors T(y): the token embeddings of the class names, read from a Stable-Diffusion-format text encoder.

T(y) is a row of the text encoder's input embedding table, not the encoder's output (DREAM-OOD, Sec. 3.1).
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from openood_dream import data, store
from openood_dream.config import Config, GeneratorTraining, InputError, origin, settings

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from: a hub id or folder, the hub `revision`, and the `identity` that names it in hashes."""

    path: str
    revision: str | None
    identity: Any

    def load(self, loader, **kwargs):
        """`loader.from_pretrained` of this source; InputError where it cannot be had."""
        return self._read(loader.from_pretrained, **kwargs)

    def _read(self, read: Callable, **kwargs):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # libraries warn each other of their next versions
                return read(self.path, revision=self.revision, **kwargs)
        except Exception as error:  # hub, JSON, safetensors and OS errors have no common type
            reason = str(error).strip().partition("\n")[0]
            made_here = Path(self.path, store.MANIFEST).exists()
            remedy = f"delete {self.path} and run again" if made_here else "restore it, or change dream.generator"
            for file in sorted(Path(self.path).rglob("*.safetensors")):  # which the libraries do not name
                with store.reading_tensors(file, remedy), safe_open(file, "pt"):
                    pass
            if not made_here:
                remedy = "expected a Stable Diffusion folder or the id of one on the hub"
            raise InputError(
                f"dream.generator: cannot load {self.path!r} ({type(error).__name__}: {reason}); {remedy}"
            ) from None

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """What the pipeline consists of: part -> [library, class], as model_index.json says.

        Raises InputError where it is none of the Stable Diffusion family.
        """
        index = self._read(DiffusionPipeline.load_config)
        parts = index if isinstance(index, dict) else {}
        if not all((parts.get(part) or (None,))[0] for part in ("unet", "vae", "tokenizer", "text_encoder")):
            raise InputError(
                f"dream.generator: {self.path!r} is a {parts.get('_class_name')}; expected a pipeline of the Stable "
                "Diffusion family, with unet, vae, tokenizer and text_encoder"
            )
        return index

    def text_parts(self) -> list[tuple[CLIPTokenizer, CLIPTextModel]]:
        """Tokenizer and text encoder, on the CPU; two pairs of them for Stable Diffusion XL."""
        if (Path(self.path) / "model_index.json").is_file() or not Path(self.path).is_dir():
            index = self.index
        else:  # the start of a pipeline that is to be trained
            index = {"text_encoder": ["transformers", "CLIPTextModel"]}
        pairs = []
        for end in ("", "_2"):
            library, name = index.get(f"text_encoder{end}") or (None, None)
            if library is None:
                continue
            if library != "transformers" or not name.startswith("CLIPText"):
                raise InputError(f"dream.generator: {self.path!r} has the text encoder {name}; expected CLIP's")
            tokenizer = self.load(CLIPTokenizer, subfolder=f"tokenizer{end}")
            pairs.append((tokenizer, self.load(getattr(transformers, name), subfolder=f"text_encoder{end}")))
        return pairs


def given_source(config: Config) -> Source:
    """The pipeline of `dream.generator` when it is a hub id or a folder; InputError where it is neither."""
    generator, revision = config.dream.generator, config.dream.revision
    path = Path(generator).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(_bad_generator(config, f"folder {generator!r} has no model_index.json"))
        found = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
        # hidden folders hold what downloaders note for themselves, such as times
        files = {name.as_posix(): file for name, file in found.items() if not name.parts[0].startswith(".")}
        return Source(str(path), None, {"folder": store.fingerprint([*files, store.contents(list(files.values()))])})
    if not HUB_ID.fullmatch(generator):
        raise InputError(_bad_generator(config, f"no folder {generator!r}"))
    return Source(generator, revision, {"hub": generator, "revision": revision})


def _bad_generator(config: Config, what: str) -> str:
    where = origin(config, "dream.generator")
    return f"{where}: dream.generator: {what}; expected a Stable Diffusion folder, a hub id (owner/name) or {{train: small}}"


def text_source(config: Config) -> Source:
    """Where tokenizer and text encoder come from: the given pipeline, or the start of one that is to be trained."""
    dream = settings(config, "dream")
    if not isinstance(dream.generator, GeneratorTraining):
        return given_source(config)
    inputs = text_inputs(config)
    artifact = store.build(dream.cache_dir, "text", inputs, partial(make_text_encoder, inputs))
    return Source(str(artifact.path), None, {"text": artifact.hash})


def text_inputs(config: Config) -> dict[str, Any]:
    """What decides about the text encoder that is to be trained."""
    dream = settings(config, "dream")
    return {
        "class_names": data.class_names(config),
        "prompt": dream.synthesis.prompt,
        "dim": dream.generator.text_dim,
        "norm": dream.generator.anchor_norm,
        "seed": dream.generator.seed,
    }


def make_text_encoder(inputs: dict[str, Any], folder: Path) -> None:
    """Saves a small CLIP tokenizer and text encoder, ready to be trained, whose anchors are already final.

    The vocabulary has one token for every word of the class names and the prompt. Token embeddings are random unit
    vectors times `norm`; they stay frozen in training, so that anchors and space can be made before the generator.
    """
    texts = [*inputs["class_names"], inputs["prompt"].format("")]
    tokenizer = word_tokenizer(texts)
    names = [tokenizer(name, add_special_tokens=False).input_ids for name in inputs["class_names"]]
    prompt = tokenizer(inputs["prompt"].format("")).input_ids
    length = len(prompt) + max(map(len, names))
    dim = inputs["dim"]
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        intermediate_size=2 * dim,
        projection_dim=dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.model_max_length = length
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(inputs["seed"])
        encoder = CLIPTextModel(text_config)
        table = torch.randn(len(tokenizer), dim)
        encoder.get_input_embeddings().weight.data.copy_(inputs["norm"] * nn.functional.normalize(table, dim=1))
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder")


def word_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair vocabulary is learned from `texts` until every word of them is one token."""
    from tokenizers import pre_tokenizers, trainers

    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = CLIPTokenizer(vocab={start: 0, end: 1}).backend_tokenizer
    normal = [learner.normalizer.normalize_str(text) for text in texts]
    words = {word for text in normal for word, _ in learner.pre_tokenizer.pre_tokenize_str(text)}
    # named here, since else the trainer numbers them in another order every time
    last = sorted({f"{word[-1]}</w>" for word in words})
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1 << 20,
            special_tokens=[start, end, *last],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def token_anchors(table: torch.Tensor, token_ids: list[list[int]], multi_token: str = "mean") -> torch.Tensor:
    """T(y) (C, m) from the embedding table (V, m) and the token ids of each class name.

    A name of several tokens takes their mean, first or last row. Its mean is rescaled to the mean norm of its tokens:
    averaging shortens vectors, and a text encoder expects tokens of the length it was trained on.
    """
    rows = []
    for ids in token_ids:
        tokens = table[torch.tensor(ids)]
        if multi_token == "mean" and len(ids) > 1:
            mean = tokens.mean(0)
            rows.append(mean * (tokens.norm(dim=1).mean() / mean.norm()))
        else:
            rows.append(tokens[-1] if multi_token == "last" else tokens[0])
    return torch.stack(rows)


def name_tokens(tokenizer: CLIPTokenizer, names: list[str]) -> list[list[int]]:
    """The token ids of each class name, without begin and end; InputError for a name that has none."""
    ids = [tokenizer(name, add_special_tokens=False).input_ids for name in names]
    for name, tokens in zip(names, ids, strict=True):
        if not tokens:
            raise InputError(f"dream.class_names: the generator's tokenizer has no token for {name!r}; expected a word")
    return ids


def run(config: Config) -> store.Artifact:
    """The anchors stage: `anchors.safetensors` with `anchors` (C, m), and the tokens of each class in the manifest.

    Where a pipeline has two text encoders (Stable Diffusion XL), T(y) is the rows of both tables, one after the other.
    """
    dream, names = settings(config, "dream"), data.class_names(config)
    source = text_source(config)
    inputs = {"generator": source.identity, "class_names": names, "multi_token": dream.anchors.multi_token}

    def make(folder: Path) -> dict[str, Any]:
        parts, tokens = [], {name: [] for name in names}
        for tokenizer, encoder in source.text_parts():
            ids = name_tokens(tokenizer, names)
            table = encoder.get_input_embeddings().weight.detach().float()
            parts.append(token_anchors(table, ids, dream.anchors.multi_token))
            for name, row in zip(names, ids, strict=True):
                tokens[name] += tokenizer.convert_ids_to_tokens(row)
        anchors = torch.cat(parts, dim=1)
        store.write_tensors(folder / "anchors.safetensors", anchors=anchors)
        return {"tokens": tokens, "norms": dict(zip(names, anchors.norm(dim=1).tolist(), strict=True))}

    return store.build(dream.cache_dir, "anchors", inputs, make)


def load(artifact: store.Artifact) -> torch.Tensor:
    """The anchors (C, m) of an anchors artifact."""
    return store.read_tensors(artifact.path / "anchors.safetensors")["anchors"]
