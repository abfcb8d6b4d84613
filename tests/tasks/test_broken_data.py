"""Data sets as they come: each is read as it is, or refused in one line with file, line, field and the mend. Never
shorter than the file and never another text."""

from __future__ import annotations

import gzip
import json
import os
import re
import unicodedata
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alp.cli import main
from alp.configuration import compose
from alp.configuration.task_schema import Source
from alp.errors import UserError
from alp.reproducibility import json_line
from alp.tasks import sources
from alp.tasks.catalogue import load_task
from alp.tasks.leakage import leakage
from alp.tasks.prepare import prepare
from alp.tasks.rows import Reader, Row
from alp.tasks.sources import normalised
from alp.tasks.task import Problem, is_blank, read_problems

IN_A_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Case:
    """An evaluation set's file, what its source says beside the path, and the right answer: the problems' (id, problem,
    answer), or what the line must say."""

    name: str
    content: bytes
    right: list[tuple[str, str, str]] | str
    source: str = ""


GOOD = b'{"problem": "p", "answer": "1"}\n'
READ = [("0", "p", "1")]
ACCENTS = '{"problem": "Größe ≤ σ 😀?", "answer": "½"}\n'
ACCENTS_READ = [("0", "Größe ≤ σ 😀?", "½")]


def _line(**row: Any) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _answer(text: str) -> bytes:
    return f'{{"problem": "p", "answer": {text}}}\n'.encode()


CHAT = [{"role": "system", "content": "Box it."}, {"role": "user", "content": "What is 1+1?"}]
CASES = [
    # encodings and the form of the file
    Case("utf-8 with a mark", ACCENTS.encode("utf-8-sig"), ACCENTS_READ),
    Case("utf-16", ACCENTS.encode("utf-16"), ACCENTS_READ),
    Case("utf-16 without a mark", ACCENTS.encode("utf-16-be"), ACCENTS_READ),
    Case("utf-32", ACCENTS.encode("utf-32"), ACCENTS_READ),
    Case("a mark inside", GOOD + GOOD.decode().encode("utf-8-sig"), [*READ, ("1", "p", "1")]),
    Case(
        "latin-1", GOOD + '{"problem": "Größe", "answer": "1"}\n'.encode("latin-1"), "line 2: the byte 0xf6 .*iconv -f"
    ),
    Case("utf-16 cut off", ACCENTS.encode("utf-16")[:-1], r"line 1: the byte 0x0a is no UTF-16; was it cut off\?"),
    Case("windows, blank lines, no end", b"\r\n" + GOOD[:-1] + b"\r\n\r\n" + GOOD[:-1], [*READ, ("1", "p", "1")]),
    Case("breaks in texts", '{"problem": "a\u2028b\x85c", "answer": "1"}'.encode(), [("0", "a\u2028b\x85c", "1")]),
    Case("empty", b"", "has no problem with an answer: leave the set out"),
    Case("an array", b"[\n" + GOOD + b"]", r"holds a JSON array, .*: jq -c '\.\[\]' own\.jsonl"),
    Case("indented", json.dumps({"problem": "p", "answer": "1"}, indent=1).encode(), "line 1, column 2: .*jq -c"),
    Case("cut off", GOOD + GOOD[:-10], "line 2, column .*was it cut off"),
    Case("compressed", gzip.compress(GOOD), r"is compressed \(gzip\), .*: gunzip it"),
    Case("Parquet", b"PAR1\x15\x04", "is Parquet"),
    Case("a table", b"problem,answer\np,1\n", "line 1, column 1: .*one JSON object per line expected"),
    Case("a text for an object", GOOD + b'"p"\n', "line 2: a JSON object expected, this is the text 'p'"),
    Case("nested", b'{"problem": ' + b"[" * 50_000, "line 1 cannot be read: it is nested too deeply"),
    Case(
        "a key twice", GOOD + b'{"problem": "p", "answer": "1", "answer": "2"}', "line 2: 'answer' stands twice: keep"
    ),
    # half characters
    Case(
        "half a pair", GOOD + b'{"problem": "\\ud83d", "answer": "1"}', "line 2 .*half a character .* field 'problem'"
    ),
    Case("a whole pair", b'{"problem": "\\ud83d\\ude00", "answer": "1"}', [("0", "😀", "1")]),
    Case("half a pair in utf-8", b'{"problem": "\xed\xa0\xbd", "answer": "1"}', "line 1: the byte 0xed is no UTF-8"),
    # problems
    Case("no problem", _line(question="p", answer="1"), r"\.fields: a row has no 'problem'.*line 1\).*fields\.problem"),
    Case("null", GOOD + _line(problem=None, answer="1"), "line 2: 'problem' must be a text, this is null"),
    Case("a number", _line(problem=3, answer="1"), "line 1: 'problem' must be a text, this is the number 3"),
    Case("a boolean", _line(problem=True, answer="1"), "line 1: 'problem' must be a text, this is true"),
    Case(
        "a chat", _line(problem=CHAT, answer="1"), r"a list of 2: set task\.test\.own\.fields\.problem to problem\.1\."
    ),
    Case(
        "of a chat",
        _line(problem=CHAT, answer="1"),
        [("0", "What is 1+1?", "1")],
        "fields: {problem: problem.1.content}",
    ),
    Case("an object", _line(problem={"text": "p"}, answer="1"), r"fields\.problem to problem\.text"),
    Case("spaces", GOOD + _line(problem=" \u200b\n", answer="1"), "line 2: 'problem' is empty: write one, or delete"),
    Case("all removed", _line(problem="Box it.", answer="1"), r"is empty without .*\.remove", "remove: 'Box it.'"),
    # answers
    Case(
        "an empty answer", GOOD * 3 + _answer('" "'), r"1 of 4 problems without an answer \('answer'\): line 4; an eval"
    ),
    Case(
        "a null answer", GOOD + _answer("null") * 7, "7 of 8 problems .*: line 2, line 3, line 4, line 5, line 6, …; "
    ),
    Case("an empty list", GOOD + _answer("[]"), "1 of 2 problems without an answer"),
    Case(
        "no answer", GOOD + _line(problem="p"), r"a row has no 'answer'.*line 2\); set task\.test\.own\.fields\.answer"
    ),
    Case("whole numbers", _answer("10000000000000000000000001"), [("0", "p", "10000000000000000000000001")]),
    Case("too many digits for an int", _answer("9" * 5000), [("0", "p", "9" * 5000)]),
    Case(
        "decimals",
        _answer("1.10") + _answer("-1e5") + _answer("1e999"),
        [("0", "p", "1.10"), ("1", "p", "-1e5"), ("2", "p", "1e999")],
    ),
    Case("a list", _answer('[1.50, "x"]'), [("0", "p", "1.50, x")]),
    Case("a list with a gap", _answer('["1", ""]'), "line 1: 'answer' is a list with an empty part"),
    Case("a list with null", _answer('["1", null]'), "this is a list with null in it"),
    Case("a nested list", _answer('[["1"]]'), "this is a list with a list of 1 in it: write it as a text"),
    Case(
        "a boolean answer", _answer("true"), "line 1: 'answer' must be a text, a number or a list of them, this is true"
    ),
    Case(
        "an object as answer",
        _answer('{"value": 4}'),
        r"this is an object: set task\.test\.own\.fields\.answer to answer\.v",
    ),
    Case("not a number", GOOD + _answer("NaN"), "line 2: 'answer' must be .*this is the number nan"),
    Case("infinite", _answer("-Infinity"), "this is the number -inf"),
    Case("not a number elsewhere", b'{"problem": "p", "answer": "1", "loss": NaN}', READ),
    # ids
    Case(
        "ids twice",
        _line(id=1, problem="a", answer="1") + _line(id="1", problem="b", answer="2"),
        [("1", "a", "1"), ("1#1", "b", "2")],
    ),
    Case(
        "ids twice that look made",
        b"".join(_line(id=name, problem=name, answer="1") for name in ("x#2", "x", "x")),
        [("x#2", "x#2", "1"), ("x", "x", "1"), ("x#2#2", "x", "1")],
    ),
    Case("ids of null", _line(id=None, problem="p", answer="1"), READ),
    Case(
        "a list as id",
        GOOD + _line(id=[1], problem="p", answer="1"),
        "line 2: 'id' must be a text or a number, this is",
    ),
    Case(
        "a boolean as id",
        _line(id=True, problem="p", answer="1"),
        "line 1: 'id' must be a text or a number, this is true",
    ),
    Case(
        "no id where one is named",
        _line(uid=None, problem="p", answer="1"),
        "'uid' must be .* null",
        "fields: {id: uid}",
    ),
    # scores
    Case(
        "a text as score",
        _line(problem="p", answer="1", s="0.5"),
        "'s' must be a number",
        "fields: {score: s}, score_above: 0.1",
    ),
    Case(
        "no number as score",
        b'{"problem": "p", "answer": "1", "s": [NaN]}',
        "'s' must be a number",
        "fields: {score: s}, score_above: 0.1",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_broken_data_set_gives_the_right_answer(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line: problems as they stand in the file, or exit code 2 and one line."""
    (tmp_path / "own.jsonl").write_bytes(case.content)
    source = ", ".join([f"path: '{tmp_path}/own.jsonl'", *filter(None, [case.source])])
    words = ["task=mathematics", "task.train=[]", f"task.test={{own: {{{source}}}}}", f"run.dir='{tmp_path}/data'"]
    code = main(["prepare", *words])
    said = capsys.readouterr().err.splitlines()[1:]  # the first says the command
    if isinstance(case.right, list):
        assert (code, said) == (0, [])
        found = read_problems(tmp_path / "data", "own")
        assert [(one.id, one.problem, one.answer) for one in found] == [(f"own:{i}", *rest) for i, *rest in case.right]
        assert found == load_task(compose.load("prepare", words).task).problems("own")
        return
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith("alp: error: task.test.own")
    assert "own.jsonl" in said[0]
    assert re.search(case.right, said[0]), said[0]
    assert not (tmp_path / "data" / "own.jsonl").exists()


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(GOOD)
    task = _task(f"[{{path: '{tmp_path}'}}]")
    with pytest.raises(UserError, match=r"task\.train\.0\.path: .* is a folder, .*choose from mine\.jsonl"):
        load_task(task).problems("train")


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({}, Problem("own:3", "p", "1.5", "a/b")),
        ({"id": 7, "answer": ["x", 2]}, Problem("own:7", "p", "x, 2", "a/b")),
        ({"answer": float("nan")}, "'answer' must be .*this is the number nan"),
        ({"answer": b"1"}, "'answer' must be .*this is a bytes"),
        ({"problem": date(2026, 1, 1)}, "'problem' must be a text, this is a date"),
        ({"answer": None}, Problem("own:3", "p", "", "a/b")),
    ],
)
def test_rows_of_the_hub_follow_the_same_rules(change: dict[str, Any], right: Problem | str) -> None:
    """Values of a table, which JSON has not."""
    reader = Reader(Source(hub="a/b", revision="main"), "task.train.0", "own")
    row = Row(3, "row 3", {"problem": " p ", "answer": 1.5} | change)
    if isinstance(right, Problem):
        assert reader.problem(row) == right
    else:
        with pytest.raises(UserError, match=rf"^task\.train\.0\.hub: a/b, row 3: {right}"):
            reader.problem(row)


# ---- training sources ------------------------------------------------------------------------------------------------


def _task(train: str, test: str = "{}", *words: str) -> Any:
    return compose.load(
        "prepare", ["task=mathematics", f"task.train={train}", f"task.test={test}", "task.validation=0", *words]
    ).task


def _write(path: Path, *rows: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(rows))
    return path


def test_training_problems_without_an_answer_are_counted(tmp_path: Path) -> None:
    path = _write(tmp_path / "own.jsonl", GOOD, _answer("null"), _answer('""'), _line(id=0, problem="q", answer="2"))
    task = load_task(_task(f"[{{path: '{path}'}}]"))
    assert [(one.id, one.answer) for one in task.problems("train")] == [("own:0", "1"), ("own:0#3", "2")]
    assert task.steps("train")[0] == {
        "source": "own.jsonl",
        "rows": 4,
        "ids_made_different": 1,
        "with_answer": 2,
        "within_length": 2,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"task\.train\.0: .*own\.jsonl holds no row"),
        (_line(problem=None, answer="1"), r"task\.train\.0\.path: .*own\.jsonl, line 1: 'problem' must be a text"),
        (_answer("{}"), r"line 1: 'answer' must be .*this is an object: write it as a text"),
    ],
)
def test_a_training_source_that_cannot_be_meant(content: bytes, message: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "own.jsonl", content)
    with pytest.raises(UserError, match=message):
        load_task(_task(f"[{{path: '{path}'}}]")).problems("train")


def test_a_row_keeps_its_number_whatever_is_filtered(tmp_path: Path) -> None:
    """Other bounds made other ids of the same problems."""
    rows = [_line(problem=f"p{number}", answer="1", s=number / 4) for number in range(5)]
    path = _write(tmp_path / "own.jsonl", *rows)
    for low, kept in ((0.1, [1, 2, 3, 4]), (0.6, [3, 4])):
        task = load_task(_task(f"[{{path: '{path}', fields: {{score: s}}, score_above: {low}}}]"))
        assert [(one.id, one.problem) for one in task.problems("train")] == [(f"own:{n}", f"p{n}") for n in kept]


def test_more_problems_held_out_than_there_are(tmp_path: Path) -> None:
    """Nothing would be trained on, and the validation set would be shorter than asked for."""
    path = _write(tmp_path / "own.jsonl", GOOD)
    with pytest.raises(UserError, match=r"task\.validation: 1 problems are to be held out of 1"):
        load_task(_task(f"[{{path: '{path}'}}]", "{}", "task.validation=1")).problems("validation")


def test_only_equal_prompts_are_one(tmp_path: Path) -> None:
    """Compatibility folding made one of 3² and 32."""
    prompts = ["What is 3²?", "What is 32?", "What is  32?", "Å?", "A\u030a?", "What is ½?", "What is 1⁄2?", "ﬁ", "fi"]
    path = _write(tmp_path / "own.jsonl", *(_line(problem=text, answer="1") for text in prompts))
    task = load_task(_task(f"[{{path: '{path}'}}]", "{}", "task.keep=first"))
    kept = [one.problem for one in task.problems("train")]
    assert kept == [prompts[place] for place in (0, 1, 3, 5, 6, 7, 8)]
    assert task.steps("train")[-1]["folded"] == {"spaces": 1, "characters": 1}


def test_only_equal_prompts_are_leaked() -> None:
    words = " ".join(f"w{number}" for number in range(12))
    training = [Problem("a", f"{words} 3²", "9", "x"), Problem("b", "Å", "1", "x")]
    found = leakage(training, {"own": [Problem("c", f"{words} 32", "32", "x"), Problem("d", "A\u030a", "1", "x")]})
    assert found["sets"]["own"]["exact"] == {"d": "b"}
    assert found["sets"]["own"]["shared_13_words"] == {}
    assert found["folded"] == {"own": {"spaces": 0, "characters": 1}}


def test_each_source_has_its_own_name_and_style(tmp_path: Path) -> None:
    """Two files of one name, one that is called like the number of another, one like an evaluation set."""
    row = _line(id=1, problem="p", answer="0.1234")
    names = ["x/a-2", "x/a", "y/a", "x/a:b", "x/a_b", "x/own"]
    for name in names:
        _write(tmp_path / f"{name}.jsonl", row.replace(b'"p"', f'"{name}"'.encode()))
    _write(tmp_path / "own.jsonl", row)
    rough = (1, 4, 5)
    train = ", ".join(
        f"{{path: '{tmp_path}/{name}.jsonl', style: {'minerva' if place in rough else 'math'}}}"
        for place, name in enumerate(names)
    )
    task = _task(f"[{train}]", f"{{own: {{path: '{tmp_path}/own.jsonl'}}}}")
    loaded = load_task(task)
    problems = loaded.problems("train")
    ids = [one.id for one in problems]
    assert ids == ["a-2:1", "a:1", "a-2-2:1", "a_b:1", "a_b-4:1", "own-5:1"]
    rewards = loaded.grade_all([*problems, *loaded.problems("own")], [r"\boxed{0.123}"] * 7)
    assert rewards == [float(place in rough) for place in range(7)]
    prepare(task, tmp_path / "data")
    again = load_task(task.model_copy(update={"data": str(tmp_path / "data")}))
    assert again.problems("train") == problems
    assert again.grade_all(again.problems("train"), [r"\boxed{0.123}"] * 6) == rewards[:6]


# ---- prepared folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": " "}, r"own\.jsonl, line 1: 'answer' is empty"),
        ({"answer": 1}, r"line 1: fields id, .*, each a text; 'answer' is the number 1"),
        ({"answer": None}, r"'answer' is null"),
        ({"extra": "x"}, r"'extra' is none of them"),
    ],
)
def test_prepared_problems_keep_the_same_rules(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"id": "1", "problem": "p", "answer": "1", "source": "x"} | change
    (tmp_path / "own.jsonl").write_bytes(_line(**row))
    task = load_task(_task("[]", f"{{own: {{path: '{tmp_path}/own.jsonl'}}}}", f"task.data='{tmp_path}'"))
    with pytest.raises(UserError, match=message):
        task.problems("own")


# ---- the kinds -------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _load(path: Path, *, evaluated: bool = True) -> list[Problem]:
    return sources.load(Source(path=str(path)), "own", None, "task.test.own", evaluated=evaluated)[0]


def _read(path: Path, *, evaluated: bool = True) -> list[Problem] | str:
    """The problems, or the line of a refusal."""
    try:
        return _load(path, evaluated=evaluated)
    except UserError as error:
        return str(error)


@IN_A_FOLDER
@given(problem=VALUES, answer=VALUES, identity=VALUES, evaluated=st.booleans())
@example(problem="p", answer="\u200b", identity=None, evaluated=True)
def test_any_value_is_read_as_it_is_or_refused_by_name(
    problem: Any, answer: Any, identity: Any, evaluated: bool, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(GOOD + _line(id=identity, problem=problem, answer=answer))
    found = _read(path, evaluated=evaluated)
    if isinstance(found, str):
        assert re.search(rf"{re.escape(str(path))}.* line 2\b", found)
        return
    assert found[0] == Problem("own:0", "p", "1", "own.jsonl")
    assert len(found) == 2 or not evaluated
    if len(found) == 2:
        assert found[1].problem == problem.strip()
        parts = answer if isinstance(answer, list) else [answer]
        assert found[1].answer == ", ".join(map(str, parts)).strip()
        assert not any(isinstance(part, bool | dict | list | None) for part in parts)
    else:
        assert answer is None or is_blank("".join(answer))


@IN_A_FOLDER
@given(number=NUMBERS)
@example(number="1.10")
@example(number="-0")
@example(number="1E+400")
def test_a_number_keeps_its_digits(number: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "own.jsonl", f'{{"id": {number}, "problem": "p", "answer": [{number}]}}'.encode())
    assert _load(path) == [Problem(f"own:{number}", "p", number, "own.jsonl")]


@IN_A_FOLDER
@given(
    texts=st.lists(TEXTS.filter(lambda text: not is_blank(text)), min_size=1, max_size=4),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_a_text_is_the_same_in_every_encoding(texts: list[str], encoding: str, end: str, tmp_path: Path) -> None:
    rows = [json.dumps({"problem": text, "answer": text}, ensure_ascii=False) for text in texts]
    path = _write(tmp_path / "own.jsonl", end.join(rows).encode(encoding))
    found = _load(path)
    assert [(one.problem, one.answer) for one in found] == [(text.strip(), text.strip()) for text in texts]
    folder = tmp_path / "prepared"  # what is written reads back
    _write(folder / "own.jsonl", *(json_line(one.__dict__).encode() for one in found))
    assert read_problems(folder, "own", answered=True) == found


@IN_A_FOLDER
@given(content=st.binary(max_size=40), place=st.integers(0, 200), data=st.data())
def test_any_bytes_are_read_or_refused_by_name(content: bytes, place: int, data: st.DataObject, tmp_path: Path) -> None:
    whole = data.draw(st.sampled_from([b"", GOOD * 3, ACCENTS.encode(), ACCENTS.encode("utf-16")]))
    path = _write(tmp_path / "own.jsonl", whole[:place] + content + whole[place:])
    found = _read(path)
    if isinstance(found, str):
        assert str(path) in found
        return
    assert all(not is_blank(one.problem) and not is_blank(one.answer) for one in found)


@given(names=st.lists(st.sampled_from(["x", "x#1", "x#2", "x#2#2", "x#3", "y"]), max_size=8))
def test_ids_are_made_different_whatever_they_are(names: list[str]) -> None:
    problems = [Problem(name, name, "1", "own") for name in names]
    found = sources._unique(problems)
    assert len({one.id for one in found}) == len(problems)
    assert [one.problem for one in found] == names
    assert all(one.id.startswith(name) for one, name in zip(found, names, strict=True))
    assert found == sources._unique(problems)


@given(text=TEXTS)
def test_canonical_forms_are_one(text: str) -> None:
    forms = {normalised(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert forms == {normalised(f" {text}\n\t")}


COMPATIBLE = [
    character
    for character in map(chr, range(0x2FFFF))
    if not 0xD800 <= ord(character) <= 0xDFFF
    and not character.isspace()
    and unicodedata.normalize("NFKC", character) != unicodedata.normalize("NFC", character)
]


@given(character=st.sampled_from(COMPATIBLE), before=TEXTS, after=TEXTS)
def test_characters_that_only_look_alike_stay_different(character: str, before: str, after: str) -> None:
    plain = unicodedata.normalize("NFKC", character)
    assert normalised(f"{before}|{character}|{after}") != normalised(f"{before}|{plain}|{after}")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.jsonl")
    with pytest.raises(UserError, match=r"task\.test\.own\.path: no file .*own\.jsonl"):
        _load(tmp_path / "own.jsonl")
