"""The daemon's roles in the tests: those of the SQL that is shipped, never a superuser's.

Tests prepare as superuser. What they make belongs to an application's role in a write database and
to the daemon's in a read database, as if these had made it: an event trigger sees to it, in the
template of all databases.
"""

from pathlib import Path

from cdc.servers import Server

SHIPPED = Path(__file__).parents[1] / "config"
OWNER = "app"
DAEMON = "cdc"
PUBLISHER = "cdc_publisher"
"""With the owner's rights beside its own: it makes and extends the publication."""

_HAND_OVER = """
create function hand_over() returns event_trigger language plpgsql security definer
set search_path = pg_catalog as $$
declare made record;
begin
    for made in select * from pg_event_trigger_ddl_commands()
        where schema_name is distinct from 'pg_temp' and (object_type in ('table', 'schema')
              or object_type = 'sequence' and tg_tag = 'CREATE SEQUENCE')  -- else a column's
    loop
        execute format('alter %s %s owner to {owner}', made.object_type, made.object_identity);
        if made.object_type = 'schema' then
            execute format('grant usage, create on schema %s to cdc', made.object_identity);
            execute format('alter default privileges in schema %s grant select on tables to cdc',
                           made.object_identity);
        end if;
    end loop;
end $$;
create event trigger hand_over on ddl_command_end
    when tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA',
                 'CREATE SEQUENCE')
    execute function hand_over();
"""


def shipped(name: str) -> str:
    """Give a file of SQL that is shipped."""
    return (SHIPPED / name).read_text()


def prepare_write(server: Server) -> None:
    """Make the roles of a write database, once; grant in databases made from now on."""
    if has(server, PUBLISHER):
        return
    server.psql(shipped("postgres/write-role.sql"), "template1")
    server.psql(
        f"create role {OWNER}; create role {PUBLISHER} login replication; "
        f"grant {OWNER} to {PUBLISHER}; grant usage, create on schema public to {OWNER};"
        + _HAND_OVER.replace("{owner}", OWNER),
        "template1",
    )


def prepare_read(server: Server) -> None:
    """Make the role of a read database, once; its schema is in databases made from now on."""
    if has(server, DAEMON):
        return
    server.psql(shipped("postgres/read-role.sql"), "template1")
    server.psql(
        "alter role postgres set search_path = cdc, public;"
        + _HAND_OVER.replace("{owner}", DAEMON),
        "template1",
    )


def has(server: Server, role: str) -> bool:
    """Tell whether a server has been prepared with a role."""
    return bool(server.psql(f"select 1 from pg_roles where rolname = '{role}'"))


def write_role(plugin: str) -> str:
    """Name the role that the daemon has in a write database."""
    return PUBLISHER if plugin == "pgoutput" else DAEMON
