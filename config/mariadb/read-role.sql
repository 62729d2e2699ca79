-- The daemon's user on MariaDB or MySQL, for a read database named shop_read. Run it as an administrator,
-- then give the user a password: set password for 'cdc'@'%' = password('...'); on MySQL: alter user.
create user if not exists 'cdc'@'%';
grant select, insert, update, delete, create, index, references, create temporary tables
    on shop_read.* to 'cdc'@'%';
-- For projection.follow_schema, and where a table that changed is to be fitted.
grant alter on shop_read.* to 'cdc'@'%';
