"""Data frames to transactions; and where very many have arrived, to rows set apart in bulk."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol, Self

from cdc.assemble import Assembler, Transaction
from cdc.change import Change
from cdc.message import Emitted, Message
from cdc.rows import Bulk, Rows
from cdc.source.apart import Left
from cdc.source.frame import HEADER_BYTES, Frame, Stretch

BULK_FRAMES: Final = 128
"""From how many frames at once on it pays to set rows apart."""

_OVERHEAD_BYTES: Final = 256  # what a change takes in memory beyond its bytes on the wire


class Decoder(Protocol):
    """What a plugin's decoder does."""

    def decode(self, payload: bytes | memoryview) -> Sequence[Message]:
        """Decode one frame's message; raise ProtocolError."""

    def is_commit(self, frame: Frame) -> bool:
        """Tell whether a frame ends a transaction."""

    def set_apart(self, stretch: Stretch) -> tuple[list[Rows], Left]:
        """Give rows to be written in bulk, and what is left, in order."""

    def without_changes(self, left: Left) -> list[Transaction] | None:
        """Read transactions that have no changes, at once; None where something else is left."""

    @property
    def turns(self) -> int:
        """How often relations had to be described anew for the transactions that followed."""

    def snapshot(self) -> Self:
        """Give another decoder that has decoded the same."""


class Reader:
    """Read frames in order, one by one, or in bulk where many are there and have a commit."""

    def __init__(
        self,
        decoder: Decoder,
        assembler: Assembler,
        *,
        piece_bytes: int,
        bulk_frames: int = BULK_FRAMES,
    ) -> None:
        """Take the parts; transactions of more bytes than `piece_bytes` are read in pieces."""
        self._decoder = decoder
        self._assembler = assembler
        self._piece_bytes = piece_bytes
        self._bulk_frames = bulk_frames
        self._carried: Stretch | None = None
        self.emitted = False  # a message written into the WAL was read: somebody waits for it

    @property
    def between_transactions(self) -> bool:
        """Tell whether every transaction begun has been given."""
        return self._carried is None and self._assembler.between_transactions

    def read(self, frames: Sequence[Frame] | Stretch) -> Iterator[Transaction | Bulk]:
        """Give what the frames complete; raise ProtocolError."""
        if self._carried is None and len(frames) < self._bulk_frames:
            return self._one_by_one(self._decoder, self._assembler, frames)
        every = frames if isinstance(frames, Stretch) else Stretch(frames)
        if self._carried is not None:
            every = self._carried + every
        taken, rest = every.cut(self._until_commit(every, len(frames)))
        self._carried = rest if len(rest) else None
        return self._in_bulk(taken) if len(taken) else iter(())

    def _until_commit(self, frames: Stretch, new: int) -> int:
        """Count the frames up to the last commit; without one all, if they are too much to keep.

        Only the `new` ones are looked at: those that were kept for the next time hold no commit.
        """
        count = len(frames)
        for position in range(count, count - new, -1):
            if self._decoder.is_commit(frames[position - 1]):
                return position
        return count if len(frames.data) >= self._piece_bytes else 0

    def _in_bulk(self, stretch: Stretch) -> Iterator[Transaction | Bulk]:
        rows, left = self._decoder.set_apart(stretch)
        if not rows:
            sound = self._sound(stretch, left)
            yield from self._one_by_one(self._decoder, self._assembler, sound, _mean(stretch))
            return
        decoder, assembler = self._decoder.snapshot(), self._assembler.fork()
        transactions = self._without_changes(left) or self._one_by_one(
            self._decoder, self._assembler, left, _mean(stretch)
        )
        whole = [*transactions, *self._piece(self._assembler)]
        again = partial(self._again, decoder, assembler, stretch)
        # Rows of what was dropped are among those set apart, or rows that are described otherwise,
        # or rows of no transaction.
        if (
            not whole
            or assembler.dropping
            or self._assembler.dropped > assembler.dropped
            or self._decoder.turns > decoder.turns
        ):
            yield from again()
        else:
            yield Bulk(whole, rows, again, _mean(stretch) * len(stretch))

    def _sound(self, stretch: Stretch, left: Left) -> Iterator[Frame | Change]:
        """Give what is left of a stretch: all. As it was sent, where rows are described anew."""
        turns = self._decoder.turns
        for position, one in enumerate(left):
            yield one if self._decoder.turns == turns else stretch[position]

    def _without_changes(self, left: Left) -> list[Transaction] | None:
        """Read, where nothing else is left, the begins and commits of rows that are set apart."""
        transactions = self._decoder.without_changes(left)
        if not transactions or not self._assembler.pass_by(transactions):
            return None
        return transactions

    def _again(
        self, decoder: Decoder, assembler: Assembler, frames: Iterable[Frame]
    ) -> list[Transaction]:
        decoder, assembler = decoder.snapshot(), assembler.fork()
        return [*self._one_by_one(decoder, assembler, frames), *self._piece(assembler)]

    def _piece(self, assembler: Assembler) -> list[Transaction]:
        piece = assembler.cut()
        return [] if piece is None else [piece]

    def _one_by_one(
        self,
        decoder: Decoder,
        assembler: Assembler,
        left: Iterable[Frame | Change],
        change_size: int = 0,
    ) -> Iterator[Transaction]:
        """Take frames, or the changes they hold, each of about so many bytes."""
        for one in left:
            if not isinstance(one, memoryview):
                if (piece := assembler.add(one, change_size)) is not None:
                    yield piece
                continue
            for message in decoder.decode(one[HEADER_BYTES:]):
                transaction = assembler.feed(message, _size(one))
                if transaction is not None:
                    yield transaction
                elif isinstance(message, Emitted) and decoder is self._decoder:  # not read again
                    self.emitted = True


def _mean(stretch: Stretch) -> int:
    return stretch.size // len(stretch) + _OVERHEAD_BYTES


def _size(frame: Frame) -> int:
    return len(frame) + _OVERHEAD_BYTES
