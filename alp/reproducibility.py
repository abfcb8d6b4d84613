"""What makes a result the same twice: atomic files, fixed threads, where results come from. No torch at import."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.random import Generator

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
_VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "mlflow", "snakemake", "hydra-core")


class Home(Protocol):
    """A folder that a job has for its own at this moment (alp/ownership.py)."""

    root: Path
    scratch: Path  # for files that are not whole yet

    def note(self, path: Path) -> None:
        """``path`` is about to be made below ``root``. Raises UserError where it is somebody else's."""


HOMES: list[Home] = []


def _home(path: Path) -> Home | None:
    above = path.absolute().parents
    if any(home.scratch.absolute() in above for home in HOMES):  # not whole yet: nobody's
        return None
    return next((home for home in reversed(HOMES) if home.root.absolute() in above), None)


def note(path: Path) -> None:
    """Tell the job whose folder this is that ``path`` is about to be made by other means than :func:`write_file`."""
    if (home := _home(path)) is not None:
        home.note(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write whole or not at all, even if the machine stops."""
    write_file(path, [content])


def write_file(path: Path, parts: Iterable[bytes]) -> None:
    """Write parts end to end, whole or not at all: temporary file in the same folder, fsync, rename, fsync of the
    folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    home = _home(path)
    if home is not None:
        home.note(path)
    handle, temporary = tempfile.mkstemp(
        dir=path.parent if home is None else home.scratch, prefix=f".{path.name[:80]}."
    )
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


@contextmanager
def partial_folder(near: Path) -> Iterator[Path]:
    """A temporary folder on the disk of ``near`` for files that are not whole yet; it is gone afterwards."""
    home = _home(near)
    near.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=near.parent if home is None else home.scratch, prefix=f".{near.name[:80]}."
    ) as name:
        yield Path(name)


def install(partial: Path, folder: Path) -> None:
    """Move every file of ``partial`` to the same place below ``folder``, each whole or not at all; weights last.

    A folder that has its weights has everything.
    """
    files = [path for path in sorted(partial.rglob("*")) if path.is_file() and not path.is_symlink()]
    for path in sorted(files, key=lambda path: (path.suffix == ".safetensors", str(path))):
        target = folder / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        note(target)
        os.chmod(path, 0o644)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(path, target)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a rename is not, until its folder is written."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, two-space indent, final newline; NaN and infinities are refused (they are not JSON)."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The content of such a file."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def json_line(value: dict[str, Any]) -> str:
    """One record of a ``.jsonl`` file."""
    return json.dumps(value, sort_keys=True, allow_nan=False) + "\n"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 18):
            digest.update(part)
    return digest.hexdigest()


def stream(purpose: str, *key: int) -> Generator:
    """A random generator of its own for ``purpose`` and ``key``: two purposes never share numbers, whatever their
    keys."""
    from numpy.random import Generator, Philox, SeedSequence  # a sixth of a second, which refusals need not wait for

    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return Generator(Philox(SeedSequence([word, *key])))


def fix_threads(threads: int) -> None:
    """Pin torch's thread count (sums depend on it, whatever OMP_NUM_THREADS says) and choose deterministic kernels."""
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # cuBLAS is deterministic only with it, set before its first use
    import torch

    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # its longer-named twin imports all of torch.compile, two seconds
    if torch.get_num_threads() != threads:
        raise RuntimeError(
            f"torch runs {torch.get_num_threads()} threads instead of the {threads} the configuration fixes"
        )


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _version(name: str) -> str | None:
    """Of an installed package; None of one that is not there (a job needs neither MLflow nor Snakemake)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


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
        "versions": {name: _version(name) for name in _VERSIONED},
    }


def machine() -> dict[str, Any]:
    """The kind of processor, on which the last bits of sums depend: model and the instruction sets that kernels choose
    by."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    vector = [flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sse", "f16c", "asimd", "sve", "bf16"))]
    return {
        "architecture": platform.machine(),
        "model": fields.get("model name", platform.processor()),
        "instructions": sorted(vector),
    }
