"""TensorBoard (alp/reporting/trackers.py): event files in a folder for each run, written without torch."""

from __future__ import annotations

import json
import math
import struct
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from alp.reporting.trackers import Job


class TensorBoard:
    """``place`` is what ``tensorboard --logdir`` is told; a run is ``<place>/<grid>/<arm>/seed<k>-<key>``."""

    def __init__(self, place: str, job: Job) -> None:
        folder = Path(place, job.group, job.alone)
        self.logged, self._values = _read(folder)
        self._writer = EventFileWriter(str(folder))
        if self.logged < 0:
            lines = [f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(job.config.items())]
            self._write([_text("configuration", "\n".join(lines))], 0)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See Tracker."""
        self._values |= {key: _rounded(value) for key, value in figures.items()}
        self._write([Summary.Value(tag=key, simple_value=value) for key, value in figures.items()], step)

    def conclude(self, figures: dict[str, float]) -> None:
        """See Tracker."""
        new = {key: value for key, value in figures.items() if self._values.get(key) != _rounded(value)}
        if new:
            self.log(max(self.logged, 0), new)

    def close(self, finished: bool) -> None:  # noqa: ARG002 - an event file has no word for it
        """See Tracker."""
        self._writer.close()

    def _write(self, values: list[Summary.Value], step: int) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()


def _read(folder: Path) -> tuple[int, dict[str, float]]:
    """The greatest step of a run's event files, and the last value of each figure. One that was cut off counts up to
    there."""
    last = -1
    values: dict[str, float] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            figures = {value.tag: value.simple_value for value in event.summary.value if value.HasField("simple_value")}
            last = max(last, event.step) if figures else last
            values |= figures
    return last, values


def _rounded(value: float) -> float:
    """What of a number an event holds: 32 bits."""
    return (
        float(struct.unpack("f", struct.pack("f", value))[0]) if abs(value) < 3e38 else math.copysign(math.inf, value)
    )


def _text(tag: str, text: str) -> Summary.Value:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
