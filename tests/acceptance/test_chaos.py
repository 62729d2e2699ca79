"""Killed at every step that moves a position, and at random: each transaction takes effect once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.servers import Server
from tests import roles
from tests.acceptance.conftest import until
from tests.chaos.campaign import AT_RANDOM, Campaign
from tests.chaos.failpoints import AT_BEGIN, COMMIT_SENT, IN_COPIES, ON_THE_WAY
from tests.conftest import require

KILLS = {"pgoutput": 85, "wal2json": 85, "sqlite": 40}  # two rounds of all points; one


@pytest.fixture(params=KILLS)
def campaign(
    request: pytest.FixtureRequest, write: Server, read: Server, tmp_path: Path
) -> Iterator[Campaign]:
    plugin = "pgoutput" if request.param == "sqlite" else request.param
    if plugin == "wal2json":
        require(write.installation.wal2json, "wal2json")
    name = f"chaos_{request.param}"
    roles.prepare_write(write)
    roles.prepare_read(read)
    for server in (write, read):
        server.create_database(name)
    write.psql(f"alter database {name} owner to {roles.OWNER}")
    postgres = read.url(name, roles.DAEMON)
    url = f"sqlite:///{tmp_path}/read.db" if request.param == "sqlite" else postgres
    dsn = write.dsn(name, roles.write_role(plugin))
    source = {"dsn": dsn, "slot": name, "plugin": plugin, "publication": name}
    sections = {"source": source, "read": {"url": url}}
    made = Campaign(sections, tmp_path, application=write.dsn(name), seed=len(name))
    yield made
    made.close()
    until(lambda: slot_dropped(write, name), what="the slot can be dropped")


def slot_dropped(server: Server, name: str) -> bool:
    named = f"from pg_replication_slots where slot_name = '{name}'"
    server.psql(f"select pg_drop_replication_slot(slot_name) {named} and not active")
    return not server.psql(f"select 1 {named}")


@pytest.mark.timeout(900)
def test_killed_at_every_step_nothing_is_lost_and_nothing_doubled(
    campaign: Campaign, request: pytest.FixtureRequest
):
    read = request.node.callspec.params["campaign"]
    outcome = campaign.run(kills=KILLS[read])
    assert outcome.clean, outcome
    assert outcome.kills.total() >= KILLS[read]
    assert outcome.transactions > KILLS[read]
    assert outcome.states > KILLS[read] / 2
    points = {*AT_BEGIN, *ON_THE_WAY, *IN_COPIES, AT_RANDOM}
    if read != "sqlite":
        points.add(COMMIT_SENT)
    assert points <= set(outcome.kills), points - set(outcome.kills)
