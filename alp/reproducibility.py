"""What makes a result the same twice: atomic files, fixed threads, code and environment identity. No torch at import."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from numpy.random import Generator, Philox, SeedSequence

from alp.errors import UserError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
_BELOW = 256  # characters of a path that a run folder's own files may take
_VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "mlflow", "snakemake", "hydra-core")


def write_bytes(path: Path, content: bytes) -> None:
    """Write whole or not at all, even if the machine stops."""
    write_file(path, [content])


def write_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write parts end to end, whole or not at all: temporary file in the same folder, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename is not, until its folder is written."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(folder: Path, key: str) -> None:
    """Refuse a folder that cannot be or in which nothing can be made, before anything is computed for it. Raises UserError.

    Leaves no trace. Links that lead nowhere or in a circle and names that the disk does not take are found on the way.
    """
    place = folder.absolute()
    try:
        while not os.path.lexists(place):
            place = place.parent
        place.stat()
        _check_names(folder.absolute(), place)
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:
        shown = str(place) if len(str(place)) <= 200 else f"{str(place)[:200]} …"
        raise UserError(f"{key}: nothing can be written in {shown}: {getattr(error, 'strerror', None) or error}") from None


def _check_names(folder: Path, place: Path) -> None:
    """Raise OSError or ValueError where the disk of ``place`` cannot hold ``folder`` and what is written below it."""
    if "\0" in str(folder):
        raise ValueError("a null character stands in its name")
    longest = max(len(part.encode()) for part in folder.parts)
    if longest > os.pathconf(place, "PC_NAME_MAX") or len(str(folder).encode()) + _BELOW > os.pathconf(place, "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, two-space indent, final newline; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n")


def json_line(value: dict[str, Any]) -> str:
    """One record of a ``.jsonl`` file."""
    return json.dumps(value, sort_keys=True, allow_nan=False) + "\n"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stream(purpose: str, *key: int) -> Generator:
    """A random generator of its own for ``purpose`` and ``key``: two purposes never share numbers, whatever their keys."""
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return Generator(Philox(SeedSequence([word, *key])))


def fix_threads(threads: int) -> None:
    """Pin torch's thread count (sums depend on it, whatever OMP_NUM_THREADS says) and choose deterministic kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it, set before its first use
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if torch.get_num_threads() != threads:
        raise RuntimeError(f"torch runs {torch.get_num_threads()} threads instead of the {threads} the configuration fixes")


def _imported(path: Path, module: str) -> set[str]:
    """Names of the ``alp`` modules a source file imports, inside functions too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "alp"}


def _source(module: str) -> Path | None:
    stem = PACKAGE.parent.joinpath(*module.split("."))
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def import_closure(module: str) -> list[Path]:
    """Source files that importing ``module`` can run, packages' ``__init__`` included, sorted."""
    todo, seen = [module], {}
    while todo:
        name = todo.pop()
        path = _source(name)
        if path is None or name in seen:
            continue
        seen[name] = path
        todo += _imported(path, name)
        if "." in name:
            todo.append(name.rpartition(".")[0])
    return sorted(set(seen.values()))


def module_source(dotted: str) -> Path | None:
    """Source file of a user's module, or of the module that holds the function of that name, without importing it."""
    parts = dotted.split(".")
    for base in (Path.cwd(), *map(Path, sys.path)):
        for stem in (base.joinpath(*parts), base.joinpath(*parts[:-1]) if len(parts) > 1 else None):
            for path in () if stem is None else (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
                if path.is_file():
                    return path
    return None


@cache
def code_hash(module: str, *assets: Path) -> str:
    """SHA-256 over names and contents of a module's import closure and of ``assets`` (templates, captions).

    A rule re-runs when its own code changes, and only then.
    """
    digest = hashlib.sha256()
    for path in sorted({*import_closure(module), *assets}):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def provenance() -> dict[str, Any]:
    """Commit, uncommitted changes, lock hash and package versions; nothing that depends on clock or host."""
    cpu = metadata.version("torch").endswith("+cpu")  # from the package's metadata: importing torch costs seconds
    lock = ROOT / "locks" / ("cpu.txt" if cpu else "cuda.txt")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "lock": f"locks/{lock.name}",
        "lock_sha256": sha256_file(lock) if lock.is_file() else None,
        "versions": {name: metadata.version(name) for name in _VERSIONED},
    }


def machine() -> dict[str, Any]:
    """The kind of processor, on which the last bits of sums depend: model and the instruction sets that kernels choose by."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    vector = [flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sse", "f16c", "asimd", "sve", "bf16"))]
    return {"architecture": platform.machine(), "model": fields.get("model name", platform.processor()), "instructions": sorted(vector)}
