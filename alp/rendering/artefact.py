"""What every table and figure is registered with, and the files it becomes. Standard library only: the workflow asks
for the names of a grid's artefacts each time it starts a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from alp.ownership import Claim

Kind = Literal["tables", "figures"]
PHONE = "_phone.svg"  # of a figure once more, drawn for a phone
ENDINGS: dict[Kind, tuple[str, ...]] = {"tables": (".csv", ".md", ".tex"), "figures": (".svg", ".png", PHONE)}

Known = TypeVar("Known")  # what is known before anything is measured: a grid, a dump
Measured = TypeVar("Measured")  # what it is made from
Made = TypeVar("Made")


def never_silent(_: Any) -> str:
    """Of what always has something to show."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Artefact(Generic[Known, Measured, Made]):
    """A table or a figure: ``name`` of its files, ``title`` and ``caption`` in plain text for its readers.

    ``condition`` says whether there is one for what is ``Known``; ``make`` makes it. ``silent`` says in one line that
    what was ``Measured`` gives a figure nothing to show: a page says it instead. ``healthy`` says what it looks like
    where nothing is wrong. Raises ValueError for a text that is missing, so that no page can lack one.
    """

    name: str
    title: str
    caption: str
    make: Callable[[Measured], Made]
    condition: Callable[[Known], bool] = lambda _: True
    silent: Callable[[Measured], str] = never_silent
    healthy: str = ""

    def __post_init__(self) -> None:
        missing = [key for key in ("name", "title", "caption") if not str(getattr(self, key)).strip()]
        if missing:
            raise ValueError(f"artefact '{self.name}': missing: {', '.join(missing)}")


def paths(kind: Kind, artefacts: Iterable[Artefact[Any, Any, Any]]) -> list[Path]:
    """The files of artefacts, relative to the folder that holds ``tables/`` and ``figures/``."""
    return [Path(kind, f"{artefact.name}{ending}") for artefact in artefacts for ending in ENDINGS[kind]]


def forget_stale(claim: Claim, known: Iterable[Path], current: Iterable[Path]) -> None:
    """Remove what the same job once wrote for another form of its subject: files of ``known`` that are not
    ``current``, both relative to the claimed folder."""
    for path in sorted(set(known) - set(current)):
        claim.forget(claim.root / path)
