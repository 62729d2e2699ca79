"""Every type that a column can have, with values that are hard to carry.

The tests take every value through both plugins, mirrors and projectors; docs/generate.py makes the
table of docs/types.md of it. A type of the server's catalog that is missing here fails a test.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

CONTROLS = "".join(map(chr, range(1, 32))) + "\x7f"
AWKWARD = ("", "a\tb\nc\\d\"e'f", CONTROLS, "é😀\u2028\U0010ffff", "null", "\\N", "\\.", " x ")
UNREADABLE = "unreadable"
NOT_NUMBERS = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True)
class Kind:
    """A type and its values, as the server's input functions take them.

    A value that begins with `(select` is an expression. `read` makes of the printed text what a
    projector sees, by default that text; `seen` says it for single values, UNREADABLE for those
    that Python's type cannot hold. `not_numbers` are more values, which wal2json 2.5 sends as null.
    `stored_as` is the type of a mirror's column where that is another one. `needs` names an
    extension, or libxml, that a server may be without.
    """

    sql: str
    values: tuple[str, ...]
    python: str = "str"
    read: Callable[[str], Any] = str
    seen: dict[str, Any] = field(default_factory=dict)
    not_numbers: tuple[str, ...] = ()
    stored_as: str | None = None
    key: bool = True
    array: bool = True
    setup: tuple[str, ...] = ()
    needs: str | None = None

    @property
    def column_type(self) -> str:
        return self.stored_as or self.sql

    def expected(self, value: str, printed: str) -> Any:
        """Give what a projector sees of a value; UNREADABLE where it cannot."""
        return self.seen[value] if value in self.seen else self.read(printed)


def _text(sql: str, *values: str, **options: Any) -> Kind:
    return Kind(sql, values or AWKWARD, **options)


def _unreadable(*values: str) -> dict[str, Any]:
    return dict.fromkeys(values, UNREADABLE)


def _bool(text: str) -> bool:
    return {"t": True, "f": False}[text]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("\\x"))


def _document(text: str) -> Any:
    return json.loads(text)


_NESTED = "[" * 300 + "]" * 300
_MEGABYTE = "\\x" + "00ff27095c0a" * 180_000

NUMBERS = (
    Kind("smallint", ("-32768", "0", "32767"), "int", int),
    Kind("integer", ("-2147483648", "0", "2147483647"), "int", int),
    Kind("bigint", ("-9223372036854775808", "0", "9223372036854775807"), "int", int),
    Kind(
        "numeric",
        (
            *("0", "0.000", "-0.00000000000000000001", "1.500", "1" + "0" * 199),
            *("9" * 200, "3." + "14159" * 10, "-" + "7" * 5000, "1e-16383", "1e131071"),
        ),
        "Decimal",
        Decimal,
        not_numbers=NOT_NUMBERS,
    ),
    Kind("numeric(10,2)", ("12345678.90", "-0.01"), "Decimal", Decimal, not_numbers=("NaN",)),
    Kind("numeric(60,50)", ("3." + "14159" * 10,), "Decimal", Decimal, not_numbers=("NaN",)),
    Kind(
        "real",
        ("0", "-0", "1.5", "0.1", "1e-45", "3.4028235e+38"),
        "float",
        float,
        not_numbers=NOT_NUMBERS,
    ),
    Kind(
        "double precision",
        (
            *("0", "-0", "0.1", "5e-324", "1.7976931348623157e+308", "1e15", "123456789"),
            *("0.30000000000000004", "-1e22"),
        ),
        "float",
        float,
        not_numbers=NOT_NUMBERS,
    ),
    Kind("oid", ("0", "4294967295"), "int", int),
    _text("money", "$1,234.50", "-$92,233,720,368,547,758.08", "$0.00"),
)
TEXTS = (
    _text("text"),
    _text("character varying"),
    _text("character varying(5)", "", "abcde", "é😀\\\t'"),
    _text("character(5)", "", "ab", "é😀"),
    _text("bpchar", "", "ab  ", "\\"),
    _text('"char"', "", "x", "\\", "é"),
    _text("name", "pg_x", 'Odd "name"', ""),
    Kind("boolean", ("t", "f"), "bool", _bool),
    Kind(
        "bytea",
        ("\\x", "\\x00", "\\xdeadbeef00", "\\x5c", "\\x" + bytes(range(256)).hex(), _MEGABYTE),
        "bytes",
        _bytes,
    ),
    Kind("uuid", ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",), "UUID", uuid.UUID),
    Kind(
        "json",
        (
            *('{"a": 1,  "a":2}', "null", '"x"', "[]", "true", '"\\ud83d\\ude00\\n"', _NESTED),
            *("1e400", "12345678901234567890.5", "[0.1, 2.50, 1e2]", "9" * 100),
        ),
        "dict, list, str, int, float, bool, None",
        _document,
        seen={
            "1e400": Decimal("1e400"),
            "12345678901234567890.5": Decimal("12345678901234567890.5"),
        },
        key=False,
    ),
    Kind(
        "jsonb",
        (
            *('{"a": 1,  "a":2}', "null", '"x"', "{}", '{"é\\n\\"": [1, {"b": null}]}', _NESTED),
            *("1e400", "12345678901234567890.5", "[0.1, 2.50, 1e2]", "9" * 100),
        ),
        "as json",
        _document,
        seen={"12345678901234567890.5": Decimal("12345678901234567890.5")},
    ),
    _text("jsonpath", '$."a"[*]?(@ > 1)', key=False),
    _text("xml", '<a b="\'">&lt;é\n</a>', "text", "", key=False, needs="libxml"),
)
TIMES = (
    Kind(
        "date",
        ("2024-02-29", "0001-01-01", "9999-12-31", "infinity", "-infinity", "0044-03-15 BC")
        + ("10000-01-01", "5874897-12-31", "4713-01-01 BC"),
        "date",
        date.fromisoformat,
        seen=_unreadable("infinity", "-infinity", "0044-03-15 BC", "10000-01-01", "5874897-12-31")
        | _unreadable("4713-01-01 BC"),
    ),
    Kind(
        "time without time zone",
        ("00:00:00", "00:00:00.000001", "23:59:59.999999", "24:00:00"),
        "time",
        time.fromisoformat,
        seen=_unreadable("24:00:00"),
    ),
    Kind("time(3) without time zone", ("12:00:00.123",), "time", time.fromisoformat),
    Kind(
        "time with time zone",
        ("12:00:00+05:30", "00:00:00.000001-15:59:59", "24:00:00+00"),
        "time",
        time.fromisoformat,
        seen=_unreadable("24:00:00+00"),
    ),
    Kind(
        "timestamp without time zone",
        ("2024-02-29 10:34:56.123456", "0001-01-01 00:00:00", "9999-12-31 23:59:59.999999")
        + ("infinity", "-infinity", "0044-03-15 00:00:00 BC", "10000-01-01 00:00:00")
        + ("294276-12-31 23:59:59.999999", "4714-11-24 00:00:00 BC"),
        "datetime",
        datetime.fromisoformat,
        seen=_unreadable("infinity", "-infinity", "0044-03-15 00:00:00 BC", "10000-01-01 00:00:00")
        | _unreadable("294276-12-31 23:59:59.999999", "4714-11-24 00:00:00 BC"),
    ),
    Kind(
        "timestamp with time zone",
        ("2024-02-29 10:34:56.1+02", "infinity", "-infinity", "0044-03-15 00:00:00+00 BC")
        + ("10000-01-01 00:00:00+00", "1900-01-01 00:00:00-05:50:36"),
        "datetime, in UTC",
        datetime.fromisoformat,
        seen=_unreadable("infinity", "-infinity", "0044-03-15 00:00:00+00 BC")
        | _unreadable("10000-01-01 00:00:00+00"),
    ),
    Kind(
        "interval",
        ("-00:00:01", "3 days 04:05:06.7", "-3 days +00:00:00.000001", "00:00:00")
        + ("1 mon", "1 year 2 mons -3 days 04:05:06.7", "178000000 years", "100:00:00"),
        "timedelta",
        seen={
            "-00:00:01": timedelta(seconds=-1),
            "3 days 04:05:06.7": timedelta(3, 4 * 3600 + 5 * 60 + 6, 700_000),
            "-3 days +00:00:00.000001": timedelta(-3, 0, 1),
            "00:00:00": timedelta(),
            "100:00:00": timedelta(hours=100),
        }
        | _unreadable("1 mon", "1 year 2 mons -3 days 04:05:06.7", "178000000 years"),
    ),
)
NETWORKS = (
    Kind(
        "inet",
        ("10.0.0.1/8", "10.0.0.1", "::1", "fe80::/10"),
        "IPv4Address, IPv4Interface, ... of ipaddress",
        lambda text: ip_interface(text) if "/" in text else ip_address(text),
    ),
    Kind("cidr", ("10.0.0.0/8", "::/0"), "IPv4Network, IPv6Network", ip_network),
    _text("macaddr", "08:00:2b:01:02:03"),
    _text("macaddr8", "08:00:2b:01:02:03:04:05"),
)
GEOMETRY = (
    _text("point", "(1,-2.5)", "(NaN,Infinity)", key=False),
    _text("line", "{1,-1,0}", key=False),
    _text("lseg", "[(0,0),(1,0.1)]", key=False),
    _text("box", "(3,4),(1,2)", key=False),
    _text("path", "((0,0),(1,1))", "[(0,0),(1,1)]", key=False),
    _text("polygon", "((0,0),(1,1),(1,0))", key=False),
    _text("circle", "<(1,2),3>", key=False),
)
BITS_AND_SEARCH = (
    _text("bit(3)", "101"),
    _text("bit varying", "", "0101", "1" * 300),
    _text("tsvector", "'a''b\\\\':1,2A 'é':3", ""),
    _text("tsquery", "'a' & !'b':*A", ""),
)


def _range(subtype: str, values: dict[str, Any]) -> tuple[Kind, Kind]:
    """Give the range and the multirange of a subtype."""
    several = {
        "{}" if value == "empty" else "{" + value + "}": _several(seen)
        for value, seen in values.items()
    }
    return (
        Kind(f"{subtype}range", tuple(values), "psycopg's Range", seen=values),
        Kind(f"{subtype}multirange", tuple(several), "psycopg's Multirange", seen=several),
    )


def _several(seen: Any) -> Any:
    if seen == UNREADABLE:
        return UNREADABLE
    return Multirange([] if seen.isempty else [seen])


EMPTY: Range[Any] = Range(empty=True)
_LEAP, _MARCH = datetime(2024, 2, 29, 10, 34, 56), datetime(2024, 3, 1)  # noqa: DTZ001
RANGES = (
    *_range(
        "int4",
        {"[1,5)": Range(1, 5), "empty": EMPTY, "(,)": Range(bounds="()"), "[1,)": Range(1, None)},
    ),
    *_range("int8", {"[-9223372036854775808,5)": Range(-9223372036854775808, 5), "empty": EMPTY}),
    *_range(
        "num",
        {
            "[1.50,2)": Range(Decimal("1.50"), Decimal(2)),
            "(,0.00]": Range(None, Decimal("0.00"), "(]"),
            "[NaN,NaN]": Range(Decimal("NaN"), Decimal("NaN"), "[]"),
            "[0,Infinity)": Range(Decimal(0), Decimal("Infinity")),
        },
    ),
    *_range(
        "date",
        {
            "[2024-02-29,2024-03-01)": Range(date(2024, 2, 29), date(2024, 3, 1)),
            "[-infinity,infinity)": UNREADABLE,
        },
    ),
    *_range(
        "ts",
        {
            '["2024-02-29 10:34:56","2024-03-01 00:00:00")': Range(_LEAP, _MARCH),
            "[infinity,]": UNREADABLE,
        },
    ),
    *_range(
        "tstz",
        {
            '["2024-02-29 10:34:56+00","2024-03-01 00:00:00+00")': Range(
                _LEAP.replace(tzinfo=UTC), _MARCH.replace(tzinfo=UTC)
            ),
            "[,infinity)": UNREADABLE,
        },
    ),
)
SYSTEM = (
    _text("pg_lsn", "0/0", "FFFFFFFF/FFFFFFFF"),
    _text("tid", "(4294967295,65535)", "(0,1)"),
    _text("xid", "4294967295", key=False),
    _text("cid", "4294967295", key=False),
    _text("xid8", "18446744073709551615"),
    _text("pg_snapshot", "10:20:10,14,15", key=False),
    _text("txid_snapshot", "10:20:10,14,15", key=False),
    _text("int2vector", "1 2 -3", ""),
    _text("oidvector", "1 2 3", ""),
    _text("refcursor", "<unnamed portal 1>", "", key=False),
)


def _names(sql: str, *values: str, **options: Any) -> Kind:
    """Give a type whose text names an object that the read database need not have."""
    return Kind(sql, values, stored_as="text", **options)


NAMES = (
    _names("regclass", "pg_class", "public.sample", "-"),
    _names("regproc", "now", "0"),
    _names("regprocedure", "public.twice(integer)"),
    _names("regoper", "||/"),
    _names("regoperator", "+(integer,integer)"),
    _names("regtype", "integer", "public.mood"),
    _names("regrole", "pg_monitor"),
    _names("regnamespace", "public"),
    _names("regcollation", '"C"'),
    _names("regconfig", "simple"),
    _names("regdictionary", "simple"),
    _names("aclitem", "pg_monitor=r/pg_monitor", key=False),
)
PRINTED_ONLY = (
    Kind(
        "pg_node_tree",
        ("(select adbin from pg_attrdef limit 1)",),
        stored_as="text",
        array=False,
    ),
    *(
        Kind(
            f"pg_{kind}",
            (f"(select stxd{column} from pg_statistic_ext_data where stxd{column} is not null)",),
            stored_as="text",
            array=False,
        )
        for kind, column in (
            ("ndistinct", "ndistinct"),
            ("dependencies", "dependencies"),
            ("mcv_list", "mcv"),
        )
    ),
)
USERS = (
    _text("mood", "ok", 'so "so"', stored_as="text"),
    Kind("price", ("1.50", "-0.01", "NaN"), "as its base", Decimal, stored_as="numeric(10,2)"),
    Kind("fraction", ("0.1", "NaN"), "as its base", float, stored_as="double precision"),
    Kind("small_price", ("1.50",), "as its base", Decimal, stored_as="numeric(10,2)"),
    Kind("flag", ("t", "f"), "as its base", _bool, stored_as="boolean"),
    Kind("raw", ("\\x", "\\xff00"), "as its base", _bytes, stored_as="bytea"),
    _text("moody", "ok", 'so "so"', stored_as="text"),
    Kind(
        "numbers",
        ("{1,NULL,3}", "{}"),
        "as its base",
        seen={"{1,NULL,3}": [1, None, 3], "{}": []},
        stored_as="integer[]",
        array=False,
    ),
    _text("pair", '(1,"x,""y\\\\")', "(,)", '(1,"")', stored_as="text"),
    _text("span", "[0.1,2)", "empty", "[NaN,NaN]", stored_as="text"),
    _text("spans", "{[0.1,2)}", "{}", stored_as="text"),
    _text("sample", '("2024-01-01 00:00:00",{1},)', stored_as="text"),
    Kind("information_schema.cardinal_number", ("5",), "as its base", int, stored_as="integer"),
    _text("information_schema.sql_identifier", "x", stored_as="name"),
    _text("information_schema.character_data", "x", stored_as="character varying"),
    _text("information_schema.yes_or_no", "YES", stored_as="character varying(3)"),
    Kind(
        "information_schema.time_stamp",
        ("2024-02-29 10:34:56.12+00",),
        "as its base",
        datetime.fromisoformat,
        stored_as="timestamp(2) with time zone",
    ),
    _text("hstore", '"a\\"b"=>"é", "n"=>NULL', "", needs="hstore", stored_as="text"),
    _text("citext", "Ab", "é", "", needs="citext", stored_as="text"),
)
ARRAYS = (
    Kind(
        "integer[]",
        ("{1,NULL,3}", "{}", "{{1,2},{3,4}}", "[0:1]={1,2}"),
        "list",
        seen={
            "{1,NULL,3}": [1, None, 3],
            "{}": [],
            "{{1,2},{3,4}}": [[1, 2], [3, 4]],
            "[0:1]={1,2}": [1, 2],
        },
        array=False,
    ),
    Kind(
        "text[]",
        ('{"a,b","c\\"d","\\\\",NULL,"NULL",""," x ","{}"}',),
        "list",
        seen={
            '{"a,b","c\\"d","\\\\",NULL,"NULL",""," x ","{}"}': [
                *("a,b", 'c"d', "\\", None, "NULL", "", " x ", "{}")
            ]
        },
        array=False,
    ),
    Kind(
        "double precision[]",
        ("{NaN,Infinity,-0}",),
        "list",
        seen={"{NaN,Infinity,-0}": [float("nan"), float("inf"), -0.0]},
        array=False,
    ),
    Kind(
        "timestamp with time zone[]",
        ('{"2024-02-29 10:34:56+00",infinity}',),
        "list",
        seen=_unreadable('{"2024-02-29 10:34:56+00",infinity}'),
        array=False,
    ),
    Kind(
        "mood[]",
        ('{ok,"so \\"so\\""}',),
        "list",
        seen={'{ok,"so \\"so\\""}': ["ok", 'so "so"']},
        stored_as="text[]",
        array=False,
    ),
    Kind(
        "price[]",
        ("{1.50,NaN}",),
        "list",
        seen={"{1.50,NaN}": [Decimal("1.50"), Decimal("NaN")]},
        stored_as="text",
        array=False,
    ),
    _text("pair[]", '{"(1,\\"x,\\"\\"y\\")",NULL}', stored_as="text", array=False),
)

GROUPS = {
    "Numbers": NUMBERS,
    "Text, bytes and documents": TEXTS,
    "Dates and times": TIMES,
    "Networks": NETWORKS,
    "Geometry": GEOMETRY,
    "Bits and text search": BITS_AND_SEARCH,
    "Ranges": RANGES,
    "The server's own": SYSTEM,
    "Names of objects": NAMES,
    "Types that only the server makes values of": PRINTED_ONLY,
    "Types of users' own": USERS,
    "Arrays": ARRAYS,
}
KINDS = tuple(kind for group in GROUPS.values() for kind in group)

IMPOSSIBLE = {
    "gtsvector": "lives in indexes alone: no value can be made",
    "pg_brin_bloom_summary": "lives in indexes alone: no value can be made",
    "pg_brin_minmax_multi_summary": "lives in indexes alone: no value can be made",
}

USER_TYPES = (
    "create type mood as enum ('ok', 'so \"so\"')",
    "create domain price as numeric(10,2)",
    "create domain fraction as float8",
    "create domain small_price as price check (value < 9)",
    "create domain flag as boolean",
    "create domain raw as bytea",
    "create domain moody as mood",
    "create domain numbers as int[]",
    "create type pair as (a int, b text)",
    "create type span as range (subtype = float8, multirange_type_name = spans)",
    "create table sample (at timestamp, n int[], v text default 'x')",
    "create function twice(int) returns int language sql as 'select 2 * $1'",
    "create statistics of_sample (ndistinct, dependencies, mcv) on n, v from sample",
    "insert into sample select now(), array[i % 3], i % 3 from generate_series(1, 100) i",
    "analyze sample",
)
