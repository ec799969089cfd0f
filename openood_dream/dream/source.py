"""Where a diffusion pipeline comes from: the hub, a folder, or the start of one that is to be trained."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from huggingface_hub.utils import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import safe_open
from tokenizers import pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast  # type: ignore[attr-defined]

from openood_dream.dream.placeholder import TEXT_ENCODERS, fitted, text_pairs, tokenizer_of
from openood_dream.dream.settings import GeneratorTraining
from openood_dream.dream.weights import CHECKPOINTS, located, merge_lora, teach_word
from openood_dream.errors import InputError
from openood_dream.store.artifacts import MANIFEST, build
from openood_dream.store.tensors import reading_tensors


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from.

    Args:
        path: a hub id, a folder, or one file with all weights.
        revision: the hub revision, or None for the newest.
        identity: what names it in hashes.
        where: how messages about it begin: the file and the key.
        variant: of the files with weights, such as fp16; None for those without.
        layout: the folder or hub id of a pipeline that consists of the same parts, where `path` is one file.
        lora: LoRA weights, a file, a folder or a hub id, and what they are multiplied by.
        words: files of textual inversions.
    """

    path: str
    revision: str | None
    identity: Any
    where: str = field(default="dream.generator", compare=False)
    variant: str | None = None
    layout: str | None = None
    lora: tuple[str, float] | None = None
    words: tuple[str, ...] = ()

    @property
    def text_identity(self) -> Any:
        """What names its tokenizers and token embeddings in hashes: LoRA weights change neither."""
        if self.lora is None:
            return self.identity
        return {name: value for name, value in self.identity.items() if name != "lora"}

    def load(self, loader: Any, **kwargs: Any) -> Any:
        """Loads the pipeline, or a part of it.

        Args:
            loader: a class with `from_pretrained`.
            kwargs: further arguments of it, such as `subfolder`.

        Raises:
            InputError: it cannot be had.
        """
        return self._read(loader.from_pretrained, **kwargs)

    def pipeline(self, **options: Any) -> DiffusionPipeline:
        """Loads the whole pipeline, with the words that it is taught and the LoRA weights merged into it.

        Args:
            options: further arguments of diffusers' loading.

        Raises:
            InputError: it cannot be had, or does not take what is added to it.
        """
        if self.layout is None:
            loaded = self.load(DiffusionPipeline, **self._variant, **options)
        else:
            cls = getattr(diffusers, self.index["_class_name"])
            if not hasattr(cls, "from_single_file"):
                raise InputError(
                    f"{self.where}: diffusers reads no {cls.__name__} from one file; expected its folder or hub id"
                )
            loaded = self._read(
                lambda config, **more: cls.from_single_file(self.path, config=config, **more), **options
            )
        section = self.where.removesuffix(".generator")
        for file in self.words:
            teach_word(loaded, Path(file), f"{section}.words")
        if self.lora is not None:
            merge_lora(loaded, *self.lora, f"{section}.lora")
        return loaded

    @property
    def _variant(self) -> dict[str, str]:
        return {"variant": self.variant} if self.variant else {}

    def _read(self, read: Callable[..., Any], **kwargs: Any) -> Any:
        """What `read(path)` returns, with the library's errors in one line; of one file, `path` is its layout's."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # libraries warn each other of their next versions
                return read(self.layout or self.path, revision=self.revision, **kwargs)
        except Exception as error:  # hub, JSON, safetensors and OS errors have no common type
            reason = str(error).strip().partition("\n")[0]
            made_here = Path(self.path, MANIFEST).exists()
            remedy = f"delete {self.path} and run again" if made_here else "restore it, or change dream.generator"
            files = (
                [Path(self.path)]
                if Path(self.path).suffix == ".safetensors"
                else Path(self.path).rglob("*.safetensors")
            )
            for file in sorted(files):  # which the libraries do not name
                with reading_tensors(file, remedy), safe_open(file, "pt"):
                    pass
            if _unreachable(error):
                raise InputError(
                    f"{self.where}: the hub cannot be reached for {self.layout or self.path!r}; where there is a network run "
                    f"`hf download {self.layout or self.path}`, which keeps it in HF_HOME for later, or give the folder of a "
                    "pipeline"
                ) from None
            if not made_here:
                remedy = "expected a Stable Diffusion folder or the id of one on the hub"
            raise InputError(
                f"{self.where}: cannot load {self.path!r} ({type(error).__name__}: {reason}); {remedy}"
            ) from None

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part, of which nothing else is loaded."""
        if part == "scheduler":
            return self._read(diffusers.DDIMScheduler.load_config, subfolder=part)
        if part.startswith("text_encoder"):
            return self._read(transformers.AutoConfig.from_pretrained, subfolder=part).to_dict()
        return self._read(diffusers.UNet2DConditionModel.load_config, subfolder=part)  # reads that of any other part

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """What the pipeline consists of: part -> [library, class], as model_index.json says.

        Raises:
            InputError: it draws no images of text alone.
        """
        index = self._read(DiffusionPipeline.load_config)
        parts = index if isinstance(index, dict) else {}
        name = str(parts.get("_class_name"))
        if name not in text_to_image():
            raise InputError(
                f"{self.where}: {self.path!r} is a {name}; expected a pipeline that draws images of text alone"
            )
        if not (parts.get("vae") or [None])[0] or not self.text_names(parts):
            raise InputError(
                f"{self.where}: {self.path!r}, a {name}, lacks an autoencoder, or a tokenizer and its text encoder; expected "
                "a pipeline that has them"
            )
        return parts

    @property
    def _parts(self) -> dict[str, Any]:
        """As `index`; of the start of a pipeline that is to be trained, what it will consist of."""
        if (Path(self.path) / "model_index.json").is_file() or not Path(self.path).is_dir():
            return self.index
        return {"tokenizer": ["transformers", "CLIPTokenizerFast"], "text_encoder": ["transformers", "CLIPTextModel"]}

    @staticmethod
    def text_names(parts: dict[str, Any]) -> list[str]:
        """The text encoders of a pipeline that have a tokenizer, in their order.

        Args:
            parts: what it consists of, as `index`.
        """

        def there(part: str) -> bool:
            return bool((parts.get(part) or [None])[0])

        return [part for part in TEXT_ENCODERS if there(part) and there(tokenizer_of(part))]

    @property
    def writes_alike(self) -> bool:
        """Whether its tokenizers write a class name alike in every prompt, as CLIP's do."""
        names = self.text_names(self._parts)
        return all(self._parts[tokenizer_of(part)][1].startswith("CLIP") for part in names)

    def text_parts(self) -> list[tuple[Any, Any]]:
        """Tokenizers and text encoders, on the CPU.

        Raises:
            InputError: a text encoder is one that transformers does not know.
        """
        if self.layout is not None or self.words:
            return text_pairs(self.pipeline())
        parts, pairs = self._parts, []
        for part in self.text_names(parts):
            tokenizer = tokenizer_of(part)
            known = [getattr(transformers, parts[name][1], None) for name in (tokenizer, part)]
            for name, cls in zip((tokenizer, part), known, strict=True):
                if cls is None:
                    raise InputError(
                        f"{self.where}: {self.path!r} has the {name} {parts[name][1]}, which transformers "
                        f"{transformers.__version__} does not know; update it"
                    )
            encoder = self.load(known[1], subfolder=part, **self._variant)
            pairs.append(fitted(self.load(known[0], subfolder=tokenizer), encoder))
        return pairs


def text_to_image() -> set[str]:
    """The names of the pipelines of diffusers that draw images of text alone."""
    names = {cls.__name__ for cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    return {
        name for name in names if "ControlNet" not in name and "Combined" not in name
    }  # those draw images of images


def _unreachable(error: BaseException | None) -> bool:
    """Whether an error came of a hub that could not be asked; libraries take some of these for files that it lacks."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


def given_source(
    generator: str,
    revision: str | None,
    where: str,
    *,
    variant: str | None = None,
    layout: str | None = None,
    lora: tuple[str, float] | None = None,
    words: Sequence[str] = (),
) -> Source:
    """The pipeline of a hub id, a folder or a file.

    Args:
        generator: a hub id (owner/name), the folder of a saved pipeline, or one file with all weights.
        revision: the hub revision, or None for the newest.
        where: how messages about it begin: the file and the key.
        variant: as `Source` has it.
        layout: as `Source` has it; needed for one file.
        lora: as `Source` has it.
        words: as `Source` has it.

    Returns:
        The source; that of folders and files is identified by their contents, and by all that decides about images.

    Raises:
        InputError: it is none of these, or a file is missing.
    """
    section = where.removesuffix(".generator")
    one_file = Path(generator).suffix in CHECKPOINTS
    if one_file != (layout is not None):
        wrong = f"{layout!r} is for a generator of one file" if layout else f"{generator!r} is one file"
        raise InputError(
            f"{section}.layout: {wrong}; expected the folder or hub id of a pipeline of its kind where the generator is one file "
            f"({' or '.join(CHECKPOINTS)}), else nothing"
        )
    if layout is not None and variant is not None:
        raise InputError(f"{section}.variant: {generator!r} is one file, which has no variants; leave {variant!r} out")
    path, identity = located(generator, where, "{train: small}", revision, index=True, files=CHECKPOINTS)
    if layout is not None:
        layout, identity["layout"] = located(layout, f"{section}.layout", "", revision, index=True)
    if variant is not None:
        identity["variant"] = variant
    if lora is not None:
        weights, own = located(lora[0], f"{section}.lora", "", files=CHECKPOINTS[:1])
        lora, identity["lora"] = (weights, lora[1]), [own, lora[1]]
    found = [located(word, f"{section}.words", "", files=CHECKPOINTS[:1]) for word in words]
    if found:
        identity["words"] = [[Path(word).stem, own] for word, own in found]
    return Source(path, revision, identity, where, variant, layout, lora, tuple(word for word, _ in found))


# ----------------------------------------------------------------------------- the start of a pipeline to be trained


def make_text_source(names: Sequence[str], prompt: str, training: GeneratorTraining, cache_dir: str | Path) -> Source:
    """Tokenizer and text encoder of a pipeline that is to be trained, made once.

    Args:
        names: the class names.
        prompt: the prompt, with {} where the class name goes.
        training: width, norm and seed of the token embeddings.
        cache_dir: folder of all artifacts.

    Returns:
        Their source.
    """
    inputs = text_inputs(names, prompt, training)
    artifact = build(cache_dir, "text", inputs, functools.partial(make_text_encoder, inputs))
    return Source(str(artifact.path), None, {"text": artifact.hash})


def text_inputs(names: Sequence[str], prompt: str, training: GeneratorTraining) -> dict[str, Any]:
    """What decides about the text encoder of a pipeline that is to be trained.

    Args:
        names: the class names.
        prompt: the prompt, with {} where the class name goes.
        training: width, norm and seed of the token embeddings.
    """
    return {
        "class_names": list(names),
        "prompt": prompt,
        "dim": training.text_dim,
        "norm": training.anchor_norm,
        "seed": training.seed,
    }


def make_text_encoder(inputs: dict[str, Any], folder: Path) -> None:
    """Saves a small CLIP tokenizer and text encoder, ready to be trained, whose anchors are already final.

    The vocabulary has one token for every word of the class names and the prompt. Token embeddings are random unit
    vectors times `norm`; they stay frozen in training, so that anchors and space can be made before the generator.

    Args:
        inputs: as `text_inputs` returns them.
        folder: where they are saved.
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
        embedding: Any = encoder.get_input_embeddings()
        embedding.weight.data.copy_(inputs["norm"] * nn.functional.normalize(table, dim=1))
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder")


def word_tokenizer(texts: Sequence[str]) -> CLIPTokenizerFast:
    """A CLIP tokenizer whose byte-pair vocabulary is learned from texts until every word of them is one token."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = _tokenizer_of({start: 0, end: 1}, []).backend_tokenizer
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
    return _tokenizer_of(model["vocab"], model["merges"])


def _tokenizer_of(vocab: dict[str, int], merges: list[list[str]]) -> CLIPTokenizerFast:
    """A CLIP tokenizer, read from files, which every version of transformers takes."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
        Path(folder, "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        tokenizer = CLIPTokenizerFast.from_pretrained(folder)  # nosec B615 (a folder)
    for word in ("is_local", "local_files_only"):  # of the reading, which newer versions would write
        tokenizer.init_kwargs.pop(word, None)
    return tokenizer
