"""The write database's server: how it is set, and what of that streaming cannot do with."""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Final, Literal

from psycopg import sql

from cdc.finding import Finding
from cdc.source.connection import SESSION, Connection, spelled, translated

OLDEST: Final = 14  # pgoutput sends messages since 14
_GIGABYTE: Final = 1024  # in megabytes, which the server counts WAL in
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
_LONG_MILLISECONDS: Final = 5 * 60 * 1000
_SHORT_MILLISECONDS: Final = 5 * 1000
_USUAL: Final = ("pgoutput", "test_decoding")  # what the server lists by itself
_RELOAD: Final = "select pg_reload_conf()"
RESTART: Final = "Then restart the write database"

_SETTINGS: Final = "select lower(name), setting from pg_settings where lower(name) = any(%s)"
_NAMES: Final = (
    *("max_replication_slots", "max_slot_wal_keep_size", "max_wal_senders", "max_wal_size"),
    *("output_plugin_libraries", "server_encoding", "wal_level", "wal_sender_timeout"),
    *SESSION,
)
# An average over less than an hour tells nothing of the next one.
_WAL_RATE: Final = """
select wal_bytes / extract(epoch from now() - stats_reset) / 1024 / 1024
from pg_stat_wal where stats_reset < now() - interval '1 hour'
"""
_USED: Final = """
select (select count(*) from pg_replication_slots), (select count(*) from pg_stat_get_wal_senders())
"""
_ROLE: Final = """
select current_user, rolreplication or rolsuper from pg_roles where rolname = current_user
"""

Settings = Mapping[str, str]


def read_settings(connection: Connection) -> Settings:
    """Read the settings that matter, in the server's base units; raise a SourceError."""
    with translated():
        return dict(connection.execute(_SETTINGS, [list(_NAMES)]).fetchall())


def lacks(
    connection: Connection, settings: Settings, plugin: Literal["wal2json", "pgoutput"]
) -> Iterator[Finding]:
    """Say what the server is not, or is not set to; raise a SourceError."""
    yield from too_old(connection.info.server_version // 10_000)
    if settings["wal_level"] != "logical":
        yield Finding.by_sql(
            "wal_level",
            f"wal_level is {settings['wal_level']}",
            "logical decoding needs wal_level logical",
            "alter system set wal_level = 'logical'",
            where="write",
            then=RESTART,
        )
    if settings["server_encoding"] != "UTF8" and plugin == "wal2json":
        yield Finding(
            "write_encoding",
            f"the write database's encoding is {settings['server_encoding']}",
            "wal2json sends it unconverted, which is no valid JSON",
            'set source.plugin = "pgoutput"',
        )
    yield from _not_arrived(settings)
    yield from _budget(connection, settings)
    yield from _sender_timeout(connection, int(settings["wal_sender_timeout"]))
    yield from _not_allowed(connection, settings, plugin)


def too_old(version: int) -> Iterator[Finding]:
    """Say that a major version is older than what is supported."""
    if version < OLDEST:
        yield Finding(
            "write_version",
            f"the write database is PostgreSQL {version}",
            f"{OLDEST} is the oldest supported",
            "upgrade the server",
            where="write",
        )


def _not_arrived(settings: Settings) -> Iterator[Finding]:
    """See whether what a session asks for at its start holds; units make most incomparable."""
    asked = ("bytea_output", "extra_float_digits", "intervalstyle", "timezone")
    lost = [name for name in asked if settings.get(name) != SESSION[name]]
    if lost:
        yield Finding(
            "write_settings",
            f"settings of the sessions do not arrive: {', '.join(lost)}",
            "a connection pooler drops them; it cannot carry replication either",
            "let source.dsn name the server itself",
        )


def _budget(connection: Connection, settings: Settings) -> Iterator[Finding]:
    keep, most = int(settings["max_slot_wal_keep_size"]), int(settings["max_wal_size"])
    with translated():
        row = connection.execute(_WAL_RATE).fetchone()
    rate = float(row[0]) if row else 0.0
    if keep == -1:
        yield Finding.by_sql(
            "slot_wal_unlimited",
            "max_slot_wal_keep_size is unlimited",
            "while the daemon is stopped, kept WAL can fill the write database's disk",
            *roomy(most, rate),
            where="write",
            then="Take less where the disk has no room for that",
            blocks=False,
        )
    elif keep < max(most, rate * _HOUR):
        lasts = f", and at its average {keep / rate / 60:.0f} minutes of WAL" if rate else ""
        yield Finding.by_sql(
            "slot_wal_small",
            f"max_slot_wal_keep_size is {keep} MB: max_wal_size is {most} MB{lasts}",
            "a daemon that is away or behind for a short time loses the slot",
            *roomy(most, rate),
            where="write",
            then="Take less where the disk has no room for that",
            blocks=False,
        )


def roomy(most: int, rate: float = 0.0) -> tuple[str, str]:
    """Spell a limit for a day at the average rate (MB/s), and at least ten times max_wal_size."""
    gigabytes = ceil(max(10 * most, rate * _DAY) / _GIGABYTE)
    return (f"alter system set max_slot_wal_keep_size = '{gigabytes}GB'", _RELOAD)


def _sender_timeout(connection: Connection, milliseconds: int) -> Iterator[Finding]:
    if _SHORT_MILLISECONDS <= milliseconds <= _LONG_MILLISECONDS:
        return
    why = "a daemon whose host has died is noticed late, and its slot stays taken until then"
    if 0 < milliseconds < _SHORT_MILLISECONDS:
        why = "the server gives the daemon up after a short pause of either, or of the network"
    yield Finding.by_sql(
        "wal_sender_timeout",
        f"wal_sender_timeout is {milliseconds / 1000:g} s",
        why,
        spelled(connection, "alter role {} set wal_sender_timeout = '60s'", (role(connection)[0],)),
        where="write",
        blocks=False,
    )


def _not_allowed(connection: Connection, settings: Settings, plugin: str) -> Iterator[Finding]:
    """Look at the list, where the role may see it: else trying the plugin tells."""
    allowed = settings.get("output_plugin_libraries")
    if allowed is not None:
        listed = [name.strip().strip('"') for name in allowed.split(",") if name.strip()]
        if plugin not in listed:
            yield not_allowed(connection, plugin, beside=listed)


def not_allowed(
    connection: Connection, plugin: str, *, beside: Sequence[str] | None = None
) -> Finding:
    """Say that the server's list lacks the plugin; `beside` is what is on it, if that is known."""
    listed = _USUAL if beside is None else beside
    wanted = sql.SQL(", ").join(map(sql.Literal, [*listed, plugin])).as_string(connection)
    return Finding.by_sql(
        "output_plugin_libraries",
        f"output_plugin_libraries does not list {plugin}",
        "the server refuses a plugin that is not listed",
        f"alter system set output_plugin_libraries = {wanted}",
        _RELOAD,
        where="write",
        then="" if beside is not None else "With whatever it lists beside these",
    )


def role(connection: Connection) -> tuple[str, bool]:
    """Give the role's name, and whether it may replicate by its attributes."""
    with translated():
        row = connection.execute(_ROLE).fetchone()
    assert row is not None  # noqa: S101  everybody is in pg_roles
    return row[0], row[1]


def may_not_replicate(connection: Connection) -> Iterator[Finding]:
    """Say that the role lacks the attribute; of services that grant it otherwise, wrongly."""
    name, may = role(connection)
    if not may:
        yield Finding.by_sql(
            "replication_attribute",
            f"{name} may not replicate",
            "a walsender serves only roles that may",
            spelled(connection, "alter role {} replication", (name,)),
            where="write",
        )


def no_walsender(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Say that all walsenders are taken; raise a SourceError."""
    most = int(settings["max_wal_senders"])
    if _used(connection)[1] >= most:
        yield _more(
            "walsenders",
            "max_wal_senders",
            f"all {most} walsenders (max_wal_senders) are taken",
            most=most,
        )


def no_slot(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Say that all slots are taken; raise a SourceError."""
    most = int(settings["max_replication_slots"])
    if _used(connection)[0] >= most:
        yield _more(
            "replication_slots",
            "max_replication_slots",
            f"all {most} slots (max_replication_slots) are taken",
            most=most,
        )


def _more(name: str, setting: str, what: str, *, most: int) -> Finding:
    return Finding.by_sql(
        name,
        what,
        "the stream needs one",
        f"alter system set {setting} = {max(10, 2 * most)}",
        where="write",
        then=f"{RESTART}. Or let one go that nobody needs: pg_replication_slots, "
        "pg_stat_replication",
    )


def _used(connection: Connection) -> tuple[int, int]:
    with translated():
        row = connection.execute(_USED).fetchone()
    assert row is not None  # noqa: S101  a select without from gives one row
    return row[0], row[1]
