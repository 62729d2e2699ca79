"""The frames of a stretch, told apart: rows to be written in bulk, changes, and all the rest."""

from typing import TypeAlias

import numpy as np

from cdc.change import Change
from cdc.errors import ProtocolError
from cdc.rows import Rows
from cdc.source.cut_rows import CutRows, Places
from cdc.source.frame import Frame, Numbers

Left: TypeAlias = list[Frame | Change]
"""What is not set apart, in order: frames, or the changes they hold, where those were read."""


class Apart:
    """What has been found in the frames so far."""

    def __init__(self, places: Places) -> None:
        self.rows: list[Rows] = []
        self._places = places
        self._found: list[Frame | Change | None] = [None] * len(places.starts)
        self._is_left = np.ones(len(places.starts), np.bool_)

    def put(self, rows: CutRows, index: Numbers, *, in_bulk: bool) -> None:
        """Take rows, and which of the frames they are: set them apart, or read their changes."""
        if not rows.columns:  # a table without any: there is nothing to cut
            return
        if in_bulk:
            self.rows.append(rows)
        else:
            try:
                changes = rows.changes()
            except ProtocolError:  # reading them one by one tells which row it is
                return
            for position, change in zip(index.tolist(), changes, strict=True):
                self._found[position] = change
        self._is_left[index] = False

    def left(self) -> Left:
        """Give all that was not set apart."""
        index = np.flatnonzero(self._is_left)
        for position, frame in zip(index.tolist(), self._places.frames(index), strict=True):
            self._found[position] = frame
        return [one for one in self._found if one is not None]
