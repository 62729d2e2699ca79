"""Take the pipeline down: slot, publications, bookkeeping. Read tables stay."""

from contextlib import closing

from cdc.settings import Settings
from cdc.sink import checkpoint, copies, quarantine, source_columns, verifications
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine, translated
from cdc.source import publication, slot
from cdc.source.connection import Connection, connect


def drop(settings: Settings) -> list[str]:
    """Drop what setup made, but for the read tables; name what was there.

    The slot goes first: raise SlotActive, with nothing dropped, while a daemon streams.
    """
    with closing(connect(settings.source.dsn.get_secret_value())) as source:
        removed = _drop_from_source(settings, source)
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)
    with closing(connect_read(engine)) as read, translated(), read.begin():
        if checkpoint.forget(read, settings.source.slot):
            removed.append(f"checkpoint of slot {settings.source.slot}")
        copies.forget(read, settings.source.slot)
        quarantine.forget(read, settings.source.slot)
        source_columns.forget(read, settings.source.slot)
        verifications.forget(read, settings.source.slot)
    return removed


def _drop_from_source(settings: Settings, source: Connection) -> list[str]:
    """Drop the slot, and the publications unless another slot may be using them."""
    name, removed = settings.source.slot, []
    if slot.read_slot(source, name) is not None:
        slot.drop_slot(source, name)
        removed.append(f"slot {name}")
    if settings.source.plugin == "pgoutput" and not publication.shared(source, name):
        dropped = publication.drop_publications(source, settings.source.publication)
        removed += [f"publication {publication_name}" for publication_name in dropped]
    return removed
