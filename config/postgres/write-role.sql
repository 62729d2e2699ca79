-- The daemon's role on a write database that exists. Run it there as a superuser, then give the role a
-- password or a certificate (psql: \password cdc). It may read the tables of schema public, and all
-- changes; nothing else. Repeat the last three statements for other schemas, or name single tables.
do $$
begin
    if to_regrole('cdc') is null then
        create role cdc login replication;
    end if;
    execute format('grant connect on database %I to cdc', current_database());
end
$$;

grant usage on schema public to cdc;
grant select on all tables in schema public to cdc;
-- Of tables to come: those that the role makes which runs this. For another one: add "for role NAME".
alter default privileges in schema public grant select on tables to cdc;

-- For plugin = "pgoutput" the tables' owner makes the publication that `cdc check` names. To let the
-- daemon make and extend it, which takes the owner's rights: grant OWNER to cdc, and grant create on
-- database NAME to cdc.
