"""A user's files beside a run: dotfiles, links, odd names. Whatever is done there, they stay as they are."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

_NAMES = (
    ".env",
    ".bashrc",
    ".git/config",
    ".ssh/id_ed25519",
    ".venv/bin/activate",
    ".alp-mine",
    ".model.partial",
    ".metrics.jsonl.abc123",
    ".hidden/.deeper/file",
    "checkpoints/my_best/weights",
    "notes é ü.txt",
    "-rf",
    "a\nb",
    "$(touch x)",
    "tmp/.half",
    "run.lock",
)


def plant(folder: Path, *, checkout: bool = True) -> None:
    """Make them, with ``.git`` or without."""
    for name in _NAMES:
        if name.startswith(".git/") and not checkout:
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"of the user's: {name}", encoding="utf-8")
    (folder / "to_file").symlink_to(folder / ".env")
    (folder / "to_folder").symlink_to(folder / ".ssh")
    (folder / "to_nowhere").symlink_to(folder / "nowhere")
    (folder / "empty").mkdir()
    (folder / ".ssh").chmod(0o700)


def snapshot(folder: Path) -> dict[str, str]:
    """What every entry below the folder is and holds; links are not followed."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                content = f"-> {os.readlink(path)}"
            else:
                content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else "folder"
            found[str(path.relative_to(folder))] = f"{stat.filemode(mode)} {content}"
    return found
