-- The write database: the application's role and tables, and a role for the daemon that may read
-- them and their changes, nothing else. psql runs this once, as superuser, in the new database.
\getenv blog_password BLOG_PASSWORD
\getenv cdc_password CDC_PASSWORD

create role blog login password :'blog_password';
create role cdc login replication password :'cdc_password';

alter database :"DBNAME" owner to blog;
revoke all on database :"DBNAME" from public;
grant connect on database :"DBNAME" to cdc;

set role blog;

create table public.posts (
    id bigint generated always as identity primary key,
    title text not null,
    body text not null,
    author text not null,
    created_at timestamptz not null default now()
);

create table public.comments (
    id bigint generated always as identity primary key,
    post_id bigint not null references public.posts on delete cascade,
    author text not null,
    body text not null,
    created_at timestamptz not null default now()
);

create index on public.comments (post_id);

-- For the copy of the rows that are there before the stream begins.
grant select on public.posts, public.comments to cdc;

-- For pgoutput only. The owner of the tables makes it, because the daemon may not.
create publication cdc for table public.posts, public.comments;
