"""``alp check``: is an option really active? Two configurations, one batch, the same weights: what differs.

    alp check <key=value …> against <key=value …>    the second is the first with these words
    alp check first.yaml against second.yaml         config.yaml of two runs, or two files with ``trl: GRPOTrainer``

Nothing is written. The exit code is 0 where loss, gradient or step differ beyond rounding, 1 where they do not.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alp.configuration import compose
from alp.configuration.train_schema import TrainConfig
from alp.errors import UserError, nearest
from alp.foreign import read_yaml, reason
from alp.nested import leaves

WORD, MARKER = "against", "trl"
_SHOWN = 4  # keys that differ
_ROOM = 2**16  # bytes: with less left, the disk is why a write failed
_USAGE = "alp check method=seq_alp against method=seq_mis; alp check first.yaml against second.yaml"


def check(words: Sequence[str]) -> tuple[str, int]:
    """The comparison as text, and the exit code. Raises UserError."""
    first, second = _sides(words)
    files = [side for side in (first, second) if len(side) == 1 and "=" not in side[0]]
    if len(files) == 1:
        raise UserError(f"check: '{files[0][0]}' is a file: give two of them, or words on both sides: {_USAGE}")
    with _scratch() as folder:
        if not files:
            found = _of_ours(_composed(first), _composed(_changed(first, second)), folder)
        else:
            plain = [_read(side[0]) for side in (first, second)]
            marked = [MARKER in one for one in plain]
            if any(marked) and not all(marked):
                raise UserError(f"check: only one of both files has {MARKER}: GRPOTrainer, and one trainer is compared")
            if all(marked):
                from alp.diagnosis import check_trl

                found = check_trl.compared(plain[0], plain[1], folder)
            else:
                configs = [compose.validate("train", one) for one in plain]
                found = _of_ours(configs[0], configs[1], folder)
    return "\n".join(found.lines()), 0 if found.active else 1


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what both jobs write, gone afterwards. Raises UserError where there is no room for it: elsewhere a
    full disk is exit code 1, which says here that nothing differs."""
    try:
        made = tempfile.TemporaryDirectory(prefix="alp-check-")
    except OSError as error:
        raise UserError(f"check: no folder for temporary files (TMPDIR): {reason(error)}") from None
    with made as folder:
        try:
            yield Path(folder)
        except Exception as error:  # a library's own kind of it, often
            if isinstance(error, UserError) or shutil.disk_usage(folder).free >= _ROOM:
                raise
            raise UserError(f"check: no room left in {Path(folder).parent} (TMPDIR): {reason(error)}") from error


def _sides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    for word in words:
        if word.startswith("-"):
            raise UserError(f"check: unknown option '{word}'{nearest(word, ['--help'])}")
    if list(words).count(WORD) != 1:
        close = [word for word in words if "did you mean" in nearest(word, [WORD])]
        hint = f" ('{close[0]}' is not it)" if close else ""
        raise UserError(f"check: two configurations with the word {WORD} between them{hint}: {_USAGE}")
    at = list(words).index(WORD)
    first, second = list(words[:at]), list(words[at + 1 :])
    if not second:
        raise UserError(f"check: nothing behind {WORD}: say what the other configuration changes: {_USAGE}")
    return first, second


def _changed(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The first side with the words of the second, which win."""
    keys = {word.partition("=")[0] for word in second}
    return [*(word for word in first if word.partition("=")[0] not in keys), *second]


def _composed(words: list[str]) -> TrainConfig:
    try:
        config: TrainConfig = compose.load("train", words)
    except UserError as error:
        raise UserError(f"check: {str(error).removeprefix('train: ')}") from None
    return config


def _read(path: str) -> dict[str, Any]:
    plain = read_yaml("check", Path(path))
    if not isinstance(plain, dict):
        raise UserError(f"check: {path} holds no mapping of keys")
    return plain


def differing(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both (None where one has not the key)."""
    one, other = (dict(leaves(plain)) for plain in (first, second))
    return {
        key: (one.get(key), other.get(key))
        for key in dict.fromkeys([*one, *other])
        if one.get(key, leaves) != other.get(key, leaves)
    }


def in_words(keys: dict[str, tuple[Any, Any]]) -> str:
    """The keys that differ, for people. Raises UserError where there are none."""
    if not keys:
        raise UserError(f"check: both configurations are the same: there is nothing to compare; {_USAGE}")
    told = [f"{key} ({one} → {other})" for key, (one, other) in [*keys.items()][:_SHOWN]]
    return ", ".join(told) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _of_ours(first: TrainConfig, second: TrainConfig, folder: Path) -> Any:
    one, other = (config.model_dump(mode="json", exclude={"run": True, "variant": True}) for config in (first, second))
    keys = differing(one, other)
    said = in_words(keys)
    from alp.preload import load_libraries

    load_libraries()
    from alp.diagnosis import check_updates

    return check_updates.compared(first, second, folder, keys, said)
