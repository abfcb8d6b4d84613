"""docs/configuration.md: every key of every configuration, from the schema and the files of ``configs/``.

python -m benchmarks.configuration_page          write the page
python -m benchmarks.configuration_page check    exit code 1 where the page is not what the schema makes
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from alp.configuration import compose, grid_file
from alp.configuration.keys import Key, chosen, keys_of, kinds_of
from alp.foreign import read_json
from alp.reproducibility import write_text
from alp.verbs import VERBS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
LONGEST = 40  # characters of a default that is shown
HEAD = """# Every configuration key

*Written by `python -m benchmarks.configuration_page` from the schema (`alp/configuration/`, `alp/policy/method.py`) and
the files of `configs/`; a test holds it against them.*

A key is set on the command line as `key=value`, or for the jobs of a grid under its `overrides`. A group is chosen as
`group=choice`, which takes `configs/<group>/<choice>.yaml`. `alp <verb> --help` shows the keys of one verb, under the
choices that stand beside it (`alp train rollout=vllm --help`), and `alp <verb> --cfg job` the composed configuration.
What belongs to a key that is null, a list (`<n>`, counted from 0) or a mapping of names (`<name>`) is given with it:
`model.lora='{rank: 16, alpha: 32}'`. An unknown key, a wrong type and a value out of its bounds are refused in one
line before anything is computed.
"""
GROUPS = {  # the verb and the key that a group is shown from, in the order of the page
    "task": "train",
    "model": "train",
    "method": "train",
    "rollout": "train",
    "trainer": "train",
    "evaluation": "evaluate",
    "pretrain": "pretrain",
    "run": "train",
}


def page() -> str:
    """All of it."""
    lines = [HEAD, "## Verbs\n", *_verbs()]
    for group, verb in GROUPS.items():
        lines += [f"\n## {group}\n", *_group(group, verb)]
    lines += [
        "\n## validation\n",
        "The keys of `rollout`; its files take temperature and limits from `rollout`, and the dtype float32.\n",
    ]
    lines += ["## variant\n", "`none`, or a control for the method's preset, its name part of the arm's. Choices:"]
    lines += [f"{_choices('variant')}.\n"]
    for verbs, own in _sections().items():
        lines += [f"## {verbs}\n", *_table(own), ""]
    lines += ["## A grid file\n", *_grid_file()]
    return "\n".join(lines) + "\n"


def _sections() -> dict[str, list[Key]]:
    """Keys of verbs' own by the heading over them: verbs that have the same share one."""
    verbs: dict[str, list[str]] = {}
    for verb in compose.SCHEMAS:
        if own := _own(verb):
            verbs.setdefault(repr(own), []).append(verb)
    return {f"alp {', '.join(names)}": list(_own(names[0])) for names in verbs.values()}


def _verbs() -> Iterator[str]:
    anchors = {
        verb: "#" + heading.replace(",", "").replace(" ", "-")
        for heading in _sections()
        for verb in heading.removeprefix("alp ").split(", ")
    }
    yield "| verb | what it does | groups | keys of its own |"
    yield "| :--- | :--- | :--- | :--- |"
    for verb in compose.SCHEMAS:
        known = set(compose.schema(verb).model_fields)
        groups = ", ".join(f"[{name}](#{name})" for name in [*GROUPS, "validation", "variant"] if name in known)
        own = ", ".join(dict.fromkeys(key.path.partition(".")[0] for key in _own(verb)))
        link = f"[{own}]({anchors[verb]})" if own else ""
        yield f"| `{verb}` | {VERBS[verb].summary} | {groups} | {link} |"


@cache
def _own(verb: str) -> tuple[Key, ...]:
    """Keys that stand in no group of the page."""
    keys = keys_of(compose.schema(verb), compose.resolve(verb))
    return tuple(key for key in keys if key.path.partition(".")[0] not in (*GROUPS, "validation", "variant"))


def _group(group: str, verb: str) -> Iterator[str]:
    """A group's keys: of one that has several classes, of each, with the defaults of its file."""
    annotation = compose.schema(verb).model_fields[group].annotation
    if compose.choices(group):
        yield f"Choices: {_choices(group)}.\n"
    if group in ("task", "rollout"):
        yield from _kinds(group, annotation)
        return
    kind = kinds_of(annotation)[0]
    yield f"{_about(kind)}\n"
    values = {} if group == "method" else compose.resolve(verb)[group]  # a preset holds what differs from its defaults
    yield from _table(keys_of(kind, values, f"{group}."))


def _kinds(group: str, annotation: Any) -> Iterator[str]:
    """A table for each class; what it has of another of them is not said twice."""
    names: dict[type[Any], str] = {}
    for name in compose.choices(group):
        names.setdefault(chosen(annotation, _file(group, name)), name)
    tables: dict[type[Any], list[Key]] = {}
    for kind in kinds_of(annotation):
        tables[kind] = list(keys_of(kind, _file(group, names[kind]), f"{group}."))
        above = [other for other in tables if other is not kind and issubclass(kind, other)]
        said = {key.path for other in above for key in tables[other]}
        yield f"### {group}={names[kind]}\n"
        yield _about(kind) + "".join(f" The keys of `{group}={names[other]}`, and:" for other in above) + "\n"
        yield from _table(key for key in tables[kind] if key.path not in said)
        yield ""


def _about(kind: type[Any]) -> str:
    return _sentence(" ".join((kind.__doc__ or "").split()))


@cache
def _file(group: str, name: str) -> dict[str, Any]:
    values: dict[str, Any] = compose.resolve("train", [f"{group}={name}"])[group]
    return values


def _table(keys: Iterable[Key]) -> Iterator[str]:
    yield "| key | values | default | meaning |"
    yield "| :--- | :--- | :--- | :--- |"
    for key in keys:
        shown = "in its file" if len(key.shown) > LONGEST else f"`{key.shown}`" if key.shown else "needed"
        yield f"| `{key.path}` | {_cell(key.kind)} | {shown} | {_cell(key.meaning)} |"


def _cell(text: str) -> str:
    return text.replace("``", "`").replace(" | ", ", ").replace("|", "\\|")


def _sentence(text: str) -> str:
    text = text.replace("``", "`")
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _choices(group: str) -> str:
    return ", ".join(f"`{name}`" for name in compose.choices(group))


def _grid_file() -> Iterator[str]:
    """Fields of a grid file, from workflow/schemas/grid.schema.json."""
    schema = read_json("grid", grid_file.SCHEMA)
    yield "`configs/grid/<name>.yaml`, or a file of your own: `snakemake --config grid=<name or path>`.\n"
    yield "| field | needed | meaning |"
    yield "| :--- | :--- | :--- |"
    arms = schema["properties"]["arms"]["items"]
    fields = [("", schema, name) for name in schema["properties"] if name != "arms"]
    for prefix, part, name in [
        *fields,
        ("", schema, "arms"),
        *(("arms.<n>.", arms, name) for name in arms["properties"]),
    ]:
        needed = "yes" if name in part["required"] else ""
        yield f"| `{prefix}{name}` | {needed} | {_sentence(part['properties'][name]['description'])} |"


def main(words: list[str]) -> int:
    """Write or check; returns the exit code."""
    if words == ["check"]:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        print(
            "docs/configuration.md is what the schema makes"
            if same
            else "docs/configuration.md is not what the schema makes: python -m benchmarks.configuration_page"
        )
        return 0 if same else 1
    if words:
        print(f"configuration_page: nothing or check, not '{words[0]}'", file=sys.stderr)
        return 2
    write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
