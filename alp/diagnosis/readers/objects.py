"""`torch.save` files and pickles as plain data: nothing in them is ever imported or called.

The pickle machine may make containers, arrays and tensors. Every other class or function that a file names becomes an
:class:`Inert` that remembers what it was given.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_ARRAYS = {  # of NumPy, whatever its version calls the module
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "scalar": np.float64(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}
_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("builtins", "complex"): complex,
}
STORAGE = "_storage"  # under which a tensor is found that has no name in its object
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")


class Inert(dict[Any, Any]):
    """Stands for an object of a class that is not loaded: its items, its state and the arguments it was made with."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *_: Any, **named: Any) -> None:
        super().__init__(named)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """What a list of a foreign class is filled with."""
        self.args += (item,)

    def extend(self, items: Any) -> None:
        """The same of several."""
        self.args += tuple(items)


class Unpickler(pickle.Unpickler):
    """A pickle machine that makes data alone."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that data needs; for every other name, :class:`Inert`."""
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        root = module.partition(".")[0]
        if root == "numpy" and name in _ARRAYS:
            return _ARRAYS[name]
        if module.startswith("numpy.dtypes") and isinstance(kind := getattr(np.dtypes, name, None), type):
            return kind
        if (module, name) == ("_codecs", "encode"):
            return _encoded
        if root == "torch":
            return _of_torch(module, name)
        return Inert


def _encoded(text: Any, encoding: Any = "latin1") -> Any:
    """Bytes as old protocols spell them."""
    return text.encode("latin1") if isinstance(text, str) and encoding in ("latin1", "latin-1") else Inert(text)


def _of_torch(module: str, name: str) -> Any:
    import torch

    if module == "torch._utils" and name in _REBUILD:
        return getattr(torch._utils, name)
    if (module, name) == ("torch.storage", "_load_from_bytes"):
        return _storage
    if module == "torch" and (name in ("Size", "device") or isinstance(getattr(torch, name, None), torch.dtype)):
        return getattr(torch, name)
    return Inert


def _storage(content: bytes) -> Any:
    """What a tensor in a plain pickle holds: bytes of `torch.save`."""
    return unpack(content)


class _Machine(ModuleType):
    """What `torch.load` takes in the place of the pickle module."""

    Unpickler = Unpickler
    load = staticmethod(lambda stream, **_: Unpickler(stream).load())


def unpack(content: bytes) -> Any:
    """What `torch.save` made into bytes, as data."""
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", pickle_module=_Machine("data"), weights_only=False)


def load(path: Path) -> Any:
    """A .pt, .pth, .pkl or .pickle file as data; tensors stay in the file until they are used where that can be."""
    with path.open("rb") as stream:
        start = stream.read(4)
    if path.suffix in (".pkl", ".pickle") and start != b"PK\x03\x04":
        with path.open("rb") as stream:
            return Unpickler(stream).load()
    import torch

    return torch.load(
        path, map_location="cpu", pickle_module=_Machine("data"), weights_only=False, mmap=start == b"PK\x03\x04"
    )


def records(value: Any) -> list[Mapping[str, Any]]:
    """The mappings that a file's object is, or is a list of; foreign shells are opened."""
    if isinstance(value, Mapping):
        return [opened(value)]
    if isinstance(value, list | tuple):
        return [opened(item) for item in value if isinstance(item, Mapping)]
    return []


def opened(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping as it is; a foreign object as its items, attributes and what it packed inside."""
    if not isinstance(value, Inert):
        return value
    content: dict[str, Any] = {}
    for part in (*_parts(value.args), *_parts(value.state), dict(value)):
        if isinstance(part, bytes) and part[:2] == b"PK":
            part = unpack(part)
        if isinstance(part, Mapping):
            content |= {name: _opened(item) for name, item in opened(part).items()}
        elif hasattr(part, "detach"):  # a tensor that an object was made from
            content[STORAGE] = part
    return content


def _opened(value: Any) -> Any:
    return opened(value) if isinstance(value, Inert) else value


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
