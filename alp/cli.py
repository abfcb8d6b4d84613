"""``alp <verb> [group=choice] [key=value] …``: parse, compose the configuration, call the verb's function
(alp/verbs.py). Nothing is computed here."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

from alp import __version__, launch, ranks
from alp.errors import TRY_AGAIN, GraderError, Interrupted, SandboxError, UserError, nearest
from alp.lifetime import end_with_parent, hold_standard_streams, speak_utf8, unblock
from alp.terminal import columns
from alp.verbs import VERBS, Verb

_HELP = ("-h", "--help", "help")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0; 2 with one line on stderr for a user's mistake; 75 after a signal, to be
    tried again; 1 for a failure, for results that differ from their manifest (2 where that cannot be told), for
    figures that left their band and for an option that changes nothing."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is not None:
        return _run_words(words)
    hold_standard_streams()  # a process of its own
    speak_utf8()
    end_with_parent()
    if ranks.started():
        return ranks.as_rank(run, words)
    if os.environ.get("ALP_WARM"):
        from alp.warm import hand_over  # a workflow's jobs alone need it

        if (code := hand_over(words)) is not None:
            return code
    return run(words)


def run(words: list[str]) -> int:
    """All of a process: the same, with output that a reader who is gone cannot stop."""
    sys.stdout, sys.stderr = unblock(sys.stdout, 1), unblock(sys.stderr, 2)
    return _run_words(words)


def _run_words(words: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        return _dispatch(words)
    except (UserError, GraderError, SandboxError) as error:
        if os.environ.get("ALP_TRACEBACK") == "1":
            traceback.print_exc()
        return ranks.say(f"alp: error: {error}", 2 if isinstance(error, UserError) else 1)
    except Interrupted as error:
        return ranks.say(f"alp: {error}", TRY_AGAIN)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        text = f"alp: error: {where}{error.strerror}; what is done is kept, the same command goes on from there"
        return ranks.say(text, 1)
    except KeyboardInterrupt:
        return ranks.say("alp: interrupted", 130)


def _dispatch(words: list[str]) -> int:
    if not words or words in ([word] for word in _HELP):
        print(_help())
        return 0
    if words[0] in _HELP:
        return _dispatch([*words[1:], "--help"])
    if words[0] == "--version":
        print(f"alp {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        kind, known = ("option", ["--help", "--version"]) if name.startswith("-") else ("verb", [*VERBS, "help"])
        raise UserError(f"unknown {kind} '{name}'{nearest(name.lower(), known)}")
    verb = VERBS[name]
    if "-h" in rest or "--help" in rest:
        print(_verb_help(verb, rest))
        return 0
    return _said(verb.call(rest)) if verb.takes == "words" else _run(verb, rest)


def _said(result: Any) -> int:
    """Print what a verb returned; returns the exit code."""
    text, code = result if isinstance(result, tuple) else (result, 0)
    print(text)
    return int(code)


def named(verb: Verb, words: list[str]) -> list[str]:
    """The words with the key before the one that may be given by itself. Raises UserError for several, of which one
    would be read."""
    if not verb.names or all("=" in word for word in words):
        return words
    from alp.configuration.grid import quoted  # not for every verb: it brings pydantic

    bare = [word for word in words if "=" not in word]
    if len(bare) > 1:
        raise UserError(f"{verb.name}: one {verb.names} at a time, not {len(bare)}: '{bare[0]}', '{bare[1]}'")
    return [word if "=" in word else f"{verb.names}={quoted(word)}" for word in words]


def _run(verb: Verb, rest: list[str]) -> int:
    from alp.configuration import compose

    show = "--cfg" in rest
    if show:
        option = rest.index("--cfg")
        if rest[option + 1 : option + 2] != ["job"]:
            raise UserError(f"{verb.name}: --cfg shows one thing only: --cfg job")
        rest = rest[:option] + rest[option + 2 :]
    for word in rest:
        if word.startswith("-"):
            raise UserError(f"{verb.name}: unknown option '{word}'{nearest(word, ['--cfg', '--help'])}")
    config = compose.load(verb.name, named(verb, rest))
    if show:
        print(compose.to_yaml(config), end="")
        return 0
    if ranks.is_first() and not ranks.is_rank():
        print(shlex.join(["alp", verb.name, *rest]), file=sys.stderr, flush=True)
    return launch.run([verb.name, *rest], size) if (size := _ranks(config)) else _said(_call(verb, config))


def _ranks(config: Any) -> int:
    """How many processes are to do it in this one's place, 0 for none; refused is what they all would refuse."""
    if size := launch.to_start(config):
        from alp.ownership import check
        from alp.preflight import check_training

        check(config.run.dir, "run.dir")
        check_training(config)
    return size


def _call(verb: Verb, config: Any) -> Any:
    """Refuse a folder that is not the program's, or cannot be written, before anything is computed for it; then call
    the function. A grid is read once."""
    from alp.ownership import check

    if verb.takes == "grid":
        from alp.configuration import grid as grids

        grids.check_results(config.results)
        grid = grids.load(config.grid)
        check(grid.folder(config.results), "results", beside=True)
        options = config.model_dump(exclude={"grid", "results"})
        return verb.call(grid, Path(config.results), **options)
    if verb.takes == "run":
        check(config.run.dir, "run.dir")
    return verb.call(config)


def _help() -> str:
    width = columns()
    lines = "\n".join(
        textwrap.fill(f"{verb.name:<10} {verb.summary}", width, initial_indent="  ", subsequent_indent=" " * 13)
        for verb in VERBS.values()
    )
    return (
        "usage: alp <verb> [group=choice] [key=value] …\n\n"
        f"{lines}\n\n"
        "alp <verb> --help     its groups and keys with meaning, default and choices (alp help <verb>)\n"
        "alp <verb> --cfg job  the composed configuration, without running\n"
        "alp --version"
    )


def _verb_help(verb: Verb, rest: list[str]) -> str:
    """Usage, and the keys that the verb has under the choices of ``rest``."""
    head = f"usage: alp {verb.name} {verb.usage}".rstrip() + f"\n\n{verb.summary}"
    if verb.takes == "words":
        return head
    from alp.configuration import help

    return f"{head}\n\n{help.text(verb.name, [word for word in rest if '=' in word])}"


if __name__ == "__main__":
    sys.exit(main())
