"""``python -m alp.diagnosis <file> [key=value] …``: ``alp diagnose`` where neither Hydra nor pydantic is, which is what
the small distribution has of the command line (packages/alp-policy)."""

from __future__ import annotations

import sys
from pathlib import Path

from alp.diagnosis.dumps import FIELDS
from alp.errors import UserError, nearest

USAGE = """usage: python -m alp.diagnosis <file or folder> [key=value] …
       python -m alp.diagnosis demo        a dump that comes along

keys
  output=<folder>          where the page goes (results/diagnose/<name of the file>)
  replace=true             a diagnosis of another file in that folder gives way
  threads=1                of torch
  fields.<field>=<name>    what the file calls it: """ + ", ".join(FIELDS)
OPTIONS = ("output", "replace", "threads", *(f"fields.{field}" for field in FIELDS))
PAGE = ("matplotlib", "pandas", "jinja2", "filelock")  # what the page takes beside torch and numpy


def main(words: list[str]) -> int:
    """The exit code: 0; 2 with one line for a user's mistake."""
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0
    try:
        print(_said(words))
    except UserError as error:
        print(f"alp.diagnosis: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, say
        where = f"{error.filename}: " if error.filename else ""
        print(f"alp.diagnosis: error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _said(words: list[str]) -> str:
    """Diagnose what the words name. Raises UserError."""
    inputs, given = _parse(words)
    try:
        from alp.diagnosis.demo import demo
        from alp.diagnosis.verb import write
    except ImportError as error:
        if (library := str(error.name).partition(".")[0]) not in PAGE:
            raise
        raise UserError(
            f"the page needs {library}: pip install 'alp-policy[page]'; diagnose() of alp.diagnosis needs no page"
        ) from None
    if inputs == ["demo"] and not Path("demo").exists():
        return demo([f"{key}={value}" for key, value in given.items()])
    if len(inputs) != 1:
        raise UserError(f"one file or folder at a time, not {len(inputs)}")
    names = {field: given.get(f"fields.{field}", field) for field in FIELDS}
    replace, threads = _flag(given.get("replace", "false")), _count(given.get("threads", "1"))
    return write(Path(inputs[0]), given.get("output"), names, replace=replace, threads=threads)


def _parse(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Inputs, and the keys that are given. Raises UserError."""
    inputs, given = [], {}
    for word in words:
        key, found, value = word.partition("=")
        if not found or Path(word).exists():
            inputs.append(word)
        elif key == "input":
            inputs.append(value)
        elif key in OPTIONS:
            given[key] = value
        else:
            raise UserError(f"unknown key '{key}'{nearest(key, OPTIONS)}")
    return inputs, given


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise UserError(f"replace: true or false expected, got '{text}'")
    return text == "true"


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise UserError(f"threads: a whole number from 1 expected, got '{text}'")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
