"""Files that make a pipeline: where they are and what names them in hashes; LoRA weights and words that are added to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from openood_dream.errors import InputError, reason
from openood_dream.extras import check_installed
from openood_dream.store.files import contents, fingerprint
from openood_dream.store.tensors import reading_tensors

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CHECKPOINTS = (".safetensors", ".ckpt")  # how files with all weights of a pipeline end
ENCODERS = {"clip_l": "", "clip_g": "_2"}  # how files of Stable Diffusion XL call the text encoders that a word is for


def located(
    given: str, where: str, other: str, revision: str | None = None, *, index: bool = False, files: tuple[str, ...] = ()
) -> tuple[str, dict[str, Any]]:
    """Where weights are, and what names them in hashes.

    Args:
        given: a hub id (owner/name), a folder or a file.
        where: how messages about it begin: the file and the key.
        other: what else could have been given, for messages; empty for nothing.
        revision: the hub revision, or None for the newest.
        index: whether a folder must be that of a pipeline.
        files: how files may end.

    Returns:
        The path or hub id, and its identity: that of a folder or file is its contents.

    Raises:
        InputError: there is nothing of the kind.
    """
    kinds = ["a pipeline's folder" if index else "a folder", f"a {' or '.join(files)} file" if files else ""]
    expected = f"expected {', '.join(filter(None, [*kinds, 'a hub id (owner/name)', other]))}"
    path = Path(given).expanduser()
    if path.is_dir():
        if index and not (path / "model_index.json").is_file():
            raise InputError(f"{where}: folder {given!r} has no model_index.json; {expected}")
        found = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
        # hidden folders hold what downloaders note for themselves, such as times
        names = {name.as_posix(): file for name, file in found.items() if not name.parts[0].startswith(".")}
        return str(path), {"folder": fingerprint([*names, contents(list(names.values()))])}
    if path.suffix in files and path.is_file():
        return str(path), {"file": contents([path])}
    if path.suffix in CHECKPOINTS or not HUB_ID.fullmatch(given):
        raise InputError(f"{where}: no {'file' if path.suffix in files else 'folder'} {given!r}; {expected}")
    return given, {"hub": given, "revision": revision}


def teach_word(pipeline: DiffusionPipeline, file: Path, where: str) -> None:
    """Adds the word of a textual inversion (Gal et al., ICLR 2023) to a pipeline's tokenizers and text encoders.

    The word is what the file calls its embedding, or the file's name where it has none.

    Args:
        pipeline: the pipeline, on the CPU.
        file: a .safetensors file.
        where: how messages about it begin: the key.

    Raises:
        InputError: the file is damaged, or the pipeline takes no such word.
    """
    if not hasattr(pipeline, "load_textual_inversion"):
        raise InputError(f"{where}: {type(pipeline).__name__} cannot be taught words; leave {str(file)!r} out")
    with reading_tensors(file, "restore it"):
        tensors = load_file(file)
    own = {ENCODERS[name]: tensor for name, tensor in tensors.items() if name in ENCODERS}
    word = file.stem if own or "emb_params" in tensors else next(iter(tensors))
    try:
        for number, tensor in (own or {"": next(iter(tensors.values()))}).items():
            parts = {name: getattr(pipeline, f"{name}{number}") for name in ("tokenizer", "text_encoder")}
            pipeline.load_textual_inversion({word: tensor}, **parts)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{where}: {type(pipeline).__name__} cannot be taught {word!r} of {str(file)!r} ({reason(error)}); expected a new word "
            "of its own text encoder's width"
        ) from None


def merge_lora(pipeline: DiffusionPipeline, path: str, strength: float, where: str) -> None:
    """Merges LoRA weights (Hu et al., ICLR 2022) into a pipeline's own, so that drawing takes no longer.

    Args:
        pipeline: the pipeline, on the CPU.
        path: a .safetensors file, a folder or a hub id.
        strength: what the weights are multiplied by.
        where: how messages about it begin: the key.

    Raises:
        InputError: the package peft is missing, or the weights are none of this pipeline.
    """
    check_installed(where, "peft")
    if not hasattr(pipeline, "load_lora_weights"):
        raise InputError(f"{where}: {type(pipeline).__name__} takes no LoRA weights; leave {path!r} out")
    file = Path(path)
    options = {"weight_name": file.name} if file.is_file() else {}
    try:
        pipeline.load_lora_weights(str(file.parent) if options else path, use_safetensors=True, **options)
        if not any(pipeline.get_list_adapters().values()):
            raise ValueError("none of its weights has a place there")
        pipeline.fuse_lora(components=[*pipeline.get_list_adapters()], lora_scale=strength)
        pipeline.unload_lora_weights()
    except Exception as error:  # of the hub, safetensors, peft and diffusers, which have no common type
        raise InputError(
            f"{where}: {type(pipeline).__name__} cannot take {path!r} ({reason(error)}); expected LoRA weights of this kind "
            "of pipeline"
        ) from None
