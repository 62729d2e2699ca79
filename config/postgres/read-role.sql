-- The daemon's role on a read database that exists. Run it there as a superuser, then give the role a
-- password or a certificate (psql: \password cdc). It owns one schema, its default one, and elsewhere may
-- only stage rows in temporary tables.
do $$
begin
    if to_regrole('cdc') is null then
        create role cdc login;
    end if;
    execute format('grant connect, temporary on database %I to cdc', current_database());
end
$$;

-- A schema of the role's own name comes first on its search path.
create schema if not exists cdc authorization cdc;
