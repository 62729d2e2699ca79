"""Take the pipeline down: slot, publications, bookkeeping. Read tables stay."""

from collections.abc import Iterator
from contextlib import closing

from cdc.settings import Settings
from cdc.sink import checkpoint, copies, quarantine, source_columns, verifications
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source import publication, slot
from cdc.source.connection import Connection, connect


def drop(settings: Settings) -> Iterator[str]:
    """Drop what setup made, but for the read tables; name what was there, as it goes.

    The slot goes first, whatever the read database does: raise SlotActive, with nothing dropped,
    while a daemon streams.
    """
    with closing(connect(settings.source.dsn.get_secret_value())) as source:
        yield from _drop_from_source(settings, source)
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)
    with closing(connect_read(engine)) as read, translated(), read.begin():
        forgotten = checkpoint.forget(read, settings.source.slot)
        copies.forget(read, settings.source.slot)
        quarantine.forget(read, settings.source.slot)
        source_columns.forget(read, settings.source.slot)
        verifications.forget(read, settings.source.slot)
    if forgotten:
        yield f"checkpoint of slot {settings.source.slot}"


def _drop_from_source(settings: Settings, source: Connection) -> Iterator[str]:
    """Drop the slot, and the publications unless another slot may be using them."""
    name = settings.source.slot
    if slot.read_slot(source, name) is not None:
        slot.drop_slot(source, name)
        yield f"slot {name}"
    if settings.source.plugin == "pgoutput" and not publication.shared(source, name):
        for dropped in publication.drop_publications(source, settings.source.publication):
            yield f"publication {dropped}"
