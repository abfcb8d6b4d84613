"""Where the results of a job go (every verb that makes a folder of its own)."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from alp.configuration.fields import Name, Strict
from alp.configuration.tracking_uri import located


class Run(Strict):
    """Where results go; no part of the run's identity."""

    dir: str
    """The folder that results go into."""
    replace: bool = False
    """Whether results of another identity in ``dir`` give way; without it they are refused."""
    grid: Name | None
    """The grid that the job belongs to: its experiment in trackers; null: none."""
    arm: Name | None
    """The arm that the job belongs to: part of its name in trackers; null: none."""
    tracking: str | None
    """Tracking URI of the MLflow that shows the run while it trains; null: none. Other trackers: docs/tracking.md."""
    share: bool = True
    """Whether to take over what an equal job of a grid under the same results root has finished."""

    @classmethod
    def of(cls, folder: Path) -> Run:
        """A folder by itself, of no grid."""
        return cls(dir=str(folder), grid=None, arm=None, tracking=None)

    @field_validator("tracking")
    @classmethod
    def _names_one_file(cls, uri: str | None) -> str | None:
        if uri is not None:
            located(uri)
        return uri
