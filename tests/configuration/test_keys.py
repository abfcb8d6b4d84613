"""Every key has its meaning, the page is what the schema makes, and the help of a verb shows its keys and no others."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from alp.cli import main
from alp.configuration import compose, help
from alp.configuration.keys import UNSET, keys_of, kinds_of
from alp.nested import entries
from benchmarks import configuration_page

VERBS = list(compose.SCHEMAS)


def _all_keys(verb: str) -> list[Any]:
    """The keys of a verb and of every class that a group of it may be."""
    model = compose.schema(verb)
    keys = list(keys_of(model, compose.resolve(verb)))
    for group, member in model.model_fields.items():
        keys += [key for kind in kinds_of(member.annotation) for key in keys_of(kind, {}, f"{group}.")]
    return keys


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_has_a_meaning_and_a_type(verb: str) -> None:
    for key in _all_keys(verb):
        assert key.meaning.endswith("."), key.path
        assert key.kind, key.path


@pytest.mark.parametrize("verb", VERBS)
def test_the_keys_are_those_of_the_composed_configuration(verb: str) -> None:
    plain = compose.resolve(verb)
    composed = {key for key, _ in entries(plain)}
    named = {key.path: key for key in keys_of(compose.schema(verb), plain)}
    free = {key.path for key in named.values() if key.kind.startswith("mapping of") or key.kind == "mapping | null"}
    assert {key for key in composed if not any(key.startswith(f"{path}.") for path in free)} <= set(named)
    for path in composed & set(named):
        value: Any = plain
        for part in path.split("."):
            value = value[part]
        assert named[path].default == value


def test_types_and_defaults_in_words() -> None:
    keys = {key.path: key for key in keys_of(compose.schema("train"), compose.resolve("train"))}
    assert keys["trainer.samples"].kind == "integer ≥ 2"
    assert keys["rollout.dtype"].kind == "float32 | bfloat16 | int8"
    assert keys["method.clip_low"].kind == "number ≥ 0 and ≤ 1 | null"
    assert keys["run.arm"].kind == "name | null"
    assert keys["model.lora.rank"].default is UNSET
    assert keys["model.lora.targets"].kind == "all-linear | list of text"
    assert keys["method.corrections.<n>.kind"].inside == "method.corrections."
    assert keys["trainer.lr"].shown == "0.0001"


def test_the_page_is_what_the_schema_makes() -> None:
    assert configuration_page.main(["check"]) == 0, "python -m benchmarks.configuration_page"


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", ["train", "diagnose", "plan"])
def test_help_fits_the_terminal(verb: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help.text(verb).splitlines()
    assert max(map(len, lines)) <= columns
    assert all(
        any(f"{key.path}=" in line for line in lines)
        for key in keys_of(compose.schema(verb), {})
        if "." not in key.path and not isinstance(compose.resolve(verb)[key.path], dict)
    )


def test_help_shows_the_keys_of_the_choices_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "rollout=vllm", "-h"]) == 0
    shown = capsys.readouterr().out
    assert "rollout.kv_cache_gib=1.0" in shown
    assert "rollout.weight_noise" not in shown
    assert main(["train", "rollout=vlm", "--help"]) == 2
    assert "unknown rollout 'vlm'; did you mean 'vllm'?" in capsys.readouterr().err


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in (["help", "power"], ["--help", "power"], ["power", "--help"], ["power", "-h"]):
        assert main(words) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1
    assert "effect=2" in shown[0]
    for words in (["help"], []):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("usage: alp <verb>")
    assert main(["help", "trian"]) == 2
    assert "unknown verb 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    script = "import sys; from alp.cli import main; main(['train', '-h']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
