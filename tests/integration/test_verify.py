"""Verification finds what is wrong in the read tables, and nothing else, while both are written."""

from collections.abc import Callable
from typing import Any

import pytest

from cdc.copy_state import Unit
from cdc.operate.verify import ask
from cdc.sink import verifications
from cdc.sink.engine import create_engine
from cdc.verify_state import Mismatch, Verification
from tests.conftest import Configuration, Database, RunningDaemon

Configure = Callable[..., Configuration]
Start = Callable[..., RunningDaemon]
Found = dict[Unit, tuple[Verification, list[Mismatch]]]


def verify(
    configuration: Configuration, daemon: RunningDaemon, *projectors: str, **options: Any
) -> Found:
    """Ask for a verification and wait for what it finds."""
    settings = configuration.settings()
    units = ask(settings, projectors, **options)
    engine = create_engine(settings.read.url.get_secret_value(), reading=True)

    def stored() -> dict[Unit, Verification]:
        with engine.connect() as read:
            return verifications.load(read, configuration.slot)

    daemon.wait_until(lambda: not any(stored()[unit].due for unit in units))
    with engine.connect() as read:
        keys = verifications.keys(read, configuration.slot)
    return {unit: (stored()[unit], keys.get(unit, [])) for unit in units}


def only(found: Found) -> tuple[Verification, list[Mismatch]]:
    (one,) = found.values()
    return one


def counts(verification: Verification) -> tuple[int, int, int, int]:
    return (
        verification.missing,
        verification.extra,
        verification.different,
        verification.mended,
    )


DAMAGE = {
    "missing": ["delete from t where v = 'v5'"],
    "extra": ["insert into t select {new}, 'new', null, null"],
    "different": ["update t set v = 'other' where v = 'v7'"],
    "null for empty": ["update t set e = null where v = 'v8'"],
    "empty for null": ["update t set big = '' where v = 'v9'"],
    "in toast": ["update t set big = overlay(big placing 'x' from 9000) where v = 'v10'"],
}
KEYS = {
    "int": ("id int primary key", "i", "7777"),
    "text": ("id text primary key", "'k' || i", "'zz'"),
    "composite": ("a int, b bigint, primary key (a, b)", "i / 10, i", "3, 7777"),
}
BIG = "case when i = 10 then (select string_agg(md5(n::text), '') from generate_series(1, 400) n) end"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("masked", [False, True])
def test_damage_of_each_kind_is_found_and_repaired(
    write: Database,
    read: Database,
    configuration: Configure,
    cdc_start: Start,
    key: str,
    masked: bool,
) -> None:
    columns, values, new = KEYS[key]
    write.run(
        f"create table t ({columns}, v text, e text, big text)",
        f"insert into t select {values}, 'v' || i, '', {BIG} from generate_series(1, 3000) i",
    )
    mirror: dict[str, Any] = {"source": "public.t"}
    if masked:
        mirror["mask"] = {"e": "hash"}
    chosen = configuration(mirrors=[mirror])
    daemon = cdc_start(chosen)
    daemon.wait_started()
    clean, _ = only(verify(chosen, daemon))
    assert (clean.compared, counts(clean)) == (3000, (0, 0, 0, 0)), daemon.log
    for damage, statements in DAMAGE.items():
        read.run(*(statement.format(new=new) for statement in statements))
        verdict = damage if damage in {"missing", "extra"} else "different"
        found, mismatches = only(verify(chosen, daemon))
        assert {one.verdict for one in mismatches} == {verdict}, damage
        assert len(mismatches) == 1
        assert (found.mismatched, getattr(found, verdict)) == (1, 1)
        repaired, _ = only(verify(chosen, daemon, repair=True))
        assert (repaired.mended, repaired.mismatched) == (1, 0), damage
        clean, _ = only(verify(chosen, daemon))
        assert counts(clean) == (0, 0, 0, 0), damage
    assert daemon.stop() == 0
