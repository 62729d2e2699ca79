"""The daemon's threads: none of them ends unseen."""

from collections.abc import Callable

import pytest

from cdc.daemon import Daemon
from tests.conftest import Configuration, Database


@pytest.mark.parametrize("part", ["_sample", "_watch", "_keep_lookout"])
def test_a_thread_that_fails_ends_the_daemon(
    write: Database,
    configuration: Callable[..., Configuration],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    write.run("create table t (id int primary key)")

    def fails(_: Daemon) -> None:
        raise LookupError(part)

    monkeypatch.setattr(Daemon, part, fails)
    with pytest.raises(LookupError, match=part):
        Daemon(configuration(mirrors=[{"source": "public.t"}]).settings()).run()
