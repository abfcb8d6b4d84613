"""A model's folder as files, before anything of it is loaded: is it whole, what do its headers say, one hash over all
that loading reads.

Loading reads files of the folder itself alone: names in the weights' index that lead elsewhere are refused. Links are
followed, as a cache of the Hugging Face hub is made of them: what they lead to is what is checked and hashed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alp.errors import UserError
from alp.foreign import check_file, is_file, read_json, reading
from alp.nested import leaves
from alp.places import nearest_folder
from alp.reproducibility import sha256_file

if TYPE_CHECKING:
    from alp.configuration.model_schema import Model

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TEMPLATES = "additional_chat_templates"  # the one subfolder that a tokenizer reads
FLOATING = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WHOLE = {"BOOL": "bool"} | {
    f"{sign}{bits}": f"{'u' * (sign == 'U')}int{bits}" for sign in "IU" for bits in (8, 16, 32, 64)
}
_LAYERS = re.compile(r"(num|n)_(hidden_|decoder_)?layers?")


@dataclass(frozen=True)
class Stored:
    """A tensor as its file's header describes it; ``dtype`` in the words of safetensors."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def check(folder: Path, key: str) -> dict[str, Stored]:
    """Every tensor of a model's folder by its name, from headers alone. Raises UserError: damaged, or leads
    elsewhere."""
    config = read_json(key, folder / "config.json")
    for path in folder.glob("*.*"):
        if not path.is_dir():  # a pipe would be waited for when the folder is hashed
            check_file(key, path)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{key}: {folder} holds an adapter (adapter_config.json): merge it into its model first, or take the file"
            " away"
        )
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{key}: {folder} is quantised (quantization_config in config.json): save it in bfloat16 or float32 first"
        )
    _check_tokenizer(folder, key)
    tensors = _tensors(folder, _weights(folder, key, config), key)
    with reading(key, folder / "config.json"):
        _check_numbers(config, len(tensors), folder, key)
    return tensors


def check_folder(path: str | None, key: str = "model.path") -> Path:
    """The folder of a saved model, whole as far as the headers of its files tell. Raises UserError with what is wrong.

    What is missing is named with the nearest folder that exists.
    """
    if path is None:
        raise UserError(
            f"{key}: no model given; make the embedded one with `alp pretrain`, then pass {key}=<its run.dir>/model"
        )
    folder = Path(path)
    with reading(key, str(folder)[:200]):
        for name in ("config.json", "*.safetensors", "tokenizer_config.json"):
            if not any(folder.glob(name)):
                standing = nearest_folder(folder)
                raise UserError(
                    f"{key}: no model in {folder} (no {name}); the nearest folder that exists is {standing}"
                )
    check(folder, key)
    return folder


def check_model(model: Model) -> Path:
    """``check_folder`` of a configured model; without a folder the error says which command makes one."""
    if model.path is None and model.source is not None:
        raise UserError(
            f"model.path: no folder with {model.name}; get it with `alp fetch model={model.name}`, then pass"
            " model.path=<its run.dir>/model"
        )
    return check_folder(model.path)


def depth_of(folder: Path) -> int | None:
    """Number of decoder layers as the configuration says it; None where it has another word for it, which transformers
    knows (``alp.models.depth_of``)."""
    config = read_json("model.path", folder / "config.json")
    text = config.get("text_config", config)
    depth = text.get("num_hidden_layers") if isinstance(text, dict) else None
    return depth if isinstance(depth, int) else None


def content_hash(folder: Path) -> str:
    """One digest over names and contents of all that loading can read: configuration, weights, tokenizer, templates."""
    files = [path for path in sorted(folder.glob("*.*")) if path.is_file()]
    files += [path for path in sorted((folder / TEMPLATES).glob("*.jinja")) if path.is_file()]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0{sha256_file(path)}\0".encode())
    return digest.hexdigest()


def listed(what: str, names: Iterable[str]) -> str:
    """``3 missing tensors (a, b, c)``: how many, and the first few by name."""
    known = sorted(names)
    shown = ", ".join(known[:3]) + (", …" if len(known) > 3 else "")
    return f"{len(known)} {what} {'tensor' if len(known) == 1 else 'tensors'} ({shown})"


def _weights(folder: Path, key: str, config: dict[str, Any]) -> list[str]:
    """Names of the files that hold the weights, the index among them obeyed. Raises UserError where two could be
    meant."""
    named = config.get("transformers_weights")  # a file of another name, which transformers takes before the usual ones
    if named is not None:
        _check_name(
            named,
            f"{key}: transformers_weights in {folder / 'config.json'}",
            (".safetensors", ".safetensors.index.json"),
        )
        return [named] if named.endswith(".safetensors") else _shards(folder, named, key)
    single, index = is_file(folder / SINGLE), is_file(folder / INDEX)
    if single and index and _shards(folder, INDEX, key) != [SINGLE]:
        raise UserError(
            f"{key}: {folder} holds both {SINGLE} and {INDEX}, which names other files: take one of them away"
        )
    if not single and not index:
        raise UserError(f"{key}: no model in {folder} (neither {SINGLE} nor {INDEX})")
    return [SINGLE] if single else _shards(folder, INDEX, key)


def _shards(folder: Path, name: str, key: str) -> list[str]:
    """The files that an index names, each in the folder itself. Raises UserError."""
    path = folder / name
    plain = read_json(key, path)
    places = plain.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(plain.get("metadata"), dict):
        raise UserError(
            f"{key}: {path} is no index of weights: objects metadata and weight_map (tensor: file) expected"
        )
    for tensor, file in places.items():
        _check_name(file, f"{key}: {path}: {tensor}", (".safetensors",))
    shards = sorted(set(places.values()))
    stored = _tensors(folder, shards, key)
    astray = [tensor for tensor, file in places.items() if tensor not in stored or stored[tensor].file != file]
    if astray:
        raise UserError(f"{key}: {path}: {listed('misplaced', astray)}: not in the file that the index names")
    return shards


def _check_name(value: Any, where: str, endings: tuple[str, ...]) -> None:
    if (
        not isinstance(value, str)
        or not value.endswith(endings)
        or value != Path(value).name
        or "\\" in value
        or "\0" in value
    ):
        raise UserError(f"{where}: {str(value)[:80]!r} is no *{' or *'.join(endings)} of the same folder")


def _tensors(folder: Path, files: list[str], key: str) -> dict[str, Stored]:
    """What the headers say, checked against the files' sizes. Raises UserError for a damaged file, a name used twice,
    quantised values."""
    from safetensors import safe_open

    stored: dict[str, Stored] = {}
    for file in files:
        check_file(key, folder / file)
        with reading(key, folder / file), safe_open(folder / file, framework="np") as opened:
            header = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            here = {name: Stored(file, part.get_dtype(), tuple(part.get_shape())) for name, part in header.items()}
        if twice := sorted(here.keys() & stored.keys()):
            raise UserError(f"{key}: {folder}: {listed('repeated', twice)}: in {stored[twice[0]].file} and in {file}")
        stored |= here
    odd = [name for name, tensor in stored.items() if tensor.dtype not in FLOATING and tensor.dtype not in WHOLE]
    if odd:
        kinds = ", ".join(sorted({stored[name].dtype for name in odd}))
        where = f"{key}: {folder / stored[odd[0]].file}"
        raise UserError(
            f"{where}: {listed(kinds, odd)}: such values need scales beside them; save the model in bfloat16 or float32"
            " first"
        )
    return stored


def _check_numbers(config: dict[str, Any], tensors: int, folder: Path, key: str) -> None:
    """Refuse more layers than there are tensors, before somebody builds them, and NaN."""
    for key, value in leaves(config, lists=True):
        name = key.rpartition(".")[2]
        if _LAYERS.fullmatch(name) and isinstance(value, int) and value > tensors:
            raise UserError(
                f"{key}: {folder / 'config.json'}: {name} = {str(value)[:20]}, and the weights have {tensors} tensors"
            )
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{key}: {folder / 'config.json'}: {name} is NaN")


def _check_tokenizer(folder: Path, key: str) -> None:
    plain = read_json(key, folder / "tokenizer_config.json")
    names = plain.get("fast_tokenizer_files", [])
    if not isinstance(names, list):
        raise UserError(f"{key}: {folder / 'tokenizer_config.json'}: fast_tokenizer_files: a list of names expected")
    for name in names:
        _check_name(name, f"{key}: {folder / 'tokenizer_config.json'}: fast_tokenizer_files", (".json",))
