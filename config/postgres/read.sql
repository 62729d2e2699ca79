-- The read database: a role for the daemon that owns one schema, its default one, and elsewhere
-- may only stage rows in temporary tables. psql runs this once, as superuser, in the new database.
\getenv cdc_password CDC_PASSWORD

create role cdc login password :'cdc_password';
revoke all on database :"DBNAME" from public;
grant connect, temporary on database :"DBNAME" to cdc;

-- A schema of the role's own name comes first on its search path.
create schema cdc authorization cdc;
