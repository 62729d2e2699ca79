"""`make chaos`: kill the daemon for a given time, and print what became of the rows."""

import argparse
import sys
import tempfile
from pathlib import Path

from cdc.servers import Server
from tests.chaos.campaign import Campaign, Outcome
from tests.conftest import FAST, installation


def main() -> None:
    """Share the time among the plugins, and exit with 1 where a row is wrong."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for how long to kill")
    parser.add_argument("--seed", type=int, default=1, help="another one kills at other moments")
    given = parser.parse_args()
    total = Outcome()
    with Server(installation(), FAST) as write, Server(installation(), FAST) as read:
        plugins = ["pgoutput", "wal2json"] if write.installation.wal2json else ["pgoutput"]
        for plugin in plugins:
            outcome = _campaign(write, read, plugin, given.seconds / len(plugins), seed=given.seed)
            print(f"{plugin}:\n{outcome}\n", flush=True)
            total.add(outcome)
    print(f"in all:\n{total}")
    sys.exit(0 if total.clean else 1)


def _campaign(write: Server, read: Server, plugin: str, seconds: float, *, seed: int) -> Outcome:
    name = f"chaos_{plugin}"
    for server in (write, read):
        server.create_database(name)
    source = {"dsn": write.dsn(name), "slot": name, "plugin": plugin, "publication": name}
    folder = Path(tempfile.mkdtemp(prefix="cdc-chaos-"))
    sections = {"source": source, "read": {"url": read.url(name)}}
    campaign = Campaign(sections, folder, application=write.dsn(name), seed=seed)
    try:
        return campaign.run(seconds=seconds)
    finally:
        campaign.close()


if __name__ == "__main__":
    main()
