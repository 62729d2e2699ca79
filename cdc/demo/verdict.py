"""The verdict: what the comparison found, table by table, by key and never by value."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from cdc.operate.compare import Key, TableComparison

_EQUAL: Final = Text("equal", style="green")
_DIFFERENT: Final = Text("NOT EQUAL", style="bold red")


def print_verdict(console: Console, found: Sequence[TableComparison]) -> bool:
    """Print what was found; tell whether everything is equal, and there was something."""
    console.print("Read database against the projection of the write database, row by row:")
    width = max(len(table.table) for table in found)
    for table in found:
        for line in _lines(table, width):
            console.print(line, soft_wrap=True)
    equal = all(table.equal for table in found)
    compared = sum(table.rows for table in found)
    if equal and compared:
        console.print(
            f"[bold green]Equal:[/] all {compared:,} rows; none is missing, none is extra.",
        )
    else:
        reason = "rows differ" if compared else "there was no row to compare"
        console.print(f"[bold red]Not equal:[/] {reason}.")
    return equal and compared > 0


def _lines(table: TableComparison, width: int) -> Iterator[Text]:
    first = Text(f"  {table.table:<{width}}  ")
    if table.skipped:
        yield first.append(f"not compared ({table.skipped})", style="yellow")
        return
    first.append(f"{table.rows:>9,} rows  ").append_text(_EQUAL if table.equal else _DIFFERENT)
    yield first
    counts = {"missing": table.missing, "extra": table.extra, "different": table.different}
    for verdict, keys in table.keys.items():
        named = "; ".join(_key(table, key) for key in keys)
        more = ", ..." if counts[verdict] > len(keys) else ""
        yield Text(f"  {'':{width}}  {counts[verdict]:>9,} {verdict}: {named}{more}")


def _key(table: TableComparison, key: Key) -> str:
    return ", ".join(f"{n}={v}" for n, v in zip(table.key_columns, key, strict=True))
