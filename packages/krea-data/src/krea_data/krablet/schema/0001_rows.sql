-- migration 1: rows, tasks, dead rows, maps

create table shard (
  only_row boolean primary key default true check (only_row),
  number   int not null,
  shards   int not null,
  bits     int not null,
  dag      bigint not null default 0  -- counts the changes of table task; every writer says which one it knows
);

create table images (
  slot     int not null,
  id       text collate "C" not null,
  blob     text not null,
  meta     jsonb not null,
  added_at timestamptz not null default now(),
  primary key (slot, id)
);
create unique index images_by_id on images (id);

create table task (
  name    text collate "C" primary key,
  number  int generated always as identity,
  after   text[] not null default '{}',
  queued  boolean not null default false  -- false: results only, put by passes over the whole table
);

create table dead (
  task     text collate "C" not null,
  slot     int not null,
  id       text collate "C" not null,
  attempts int not null,
  error    text not null,
  worker   text,
  died_at  timestamptz not null default now(),
  primary key (task, slot, id)
);

create sequence token;

-- A map's ranges of ids, cursor < id <= upper. The cursor moves in the transaction that stores the results.
create table span (
  map         text collate "C" not null,
  number      int not null,
  cursor      text collate "C" not null,
  upper       text collate "C",  -- null: to the end
  done        boolean not null default false,
  token       bigint not null default 0,
  worker      text not null default '',
  lease_until timestamptz not null default '-infinity',
  primary key (map, number)
) with (fillfactor = 50);
