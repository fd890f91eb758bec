-- migration 2: slots, members and moves

alter table shard add column krablet uuid;  -- the same on all shards of one krablet

-- The shards of the krablet, as this one knows them; no passwords. `joined`: it has been set up.
create table member (
  number int primary key,
  dsn    text not null,
  joined boolean not null default false
);

-- Where every slot lives, as this shard knows it. Of two shards' answers that with the higher epoch counts.
create table slot_map (
  slot  int primary key,
  shard int not null,
  epoch bigint not null
);
insert into slot_map
select slot, (slot * shards) >> bits, 1 from shard, generate_series(0, (1 << bits) - 1) as slot;
alter table shard drop column shards;

-- Slots whose rows lie here and do not count: on their way in, or moved and not yet deleted. Whatever looks for rows,
-- and does not ask for them by id, passes over these slots.
create table away (
  slot     int primary key,
  other    int not null,    -- where they come from, or went
  epoch    bigint not null,
  incoming boolean not null,
  mover    uuid,            -- the process that may write them
  copied   jsonb not null default '{}'  -- by table: the last id that was copied, or null for all
);

-- Slots on their way out. Meanwhile triggers note which of their rows change; `id` is null where a table has none.
create table outgoing (
  slot  int primary key,
  other int not null,
  epoch bigint not null,
  mover uuid not null
);
create table change (
  n    bigint generated always as identity primary key,
  slot int not null,
  name text not null,
  id   text collate "C"
);
create index dead_by_row on dead (slot, id);

create function note_new_rows() returns trigger language plpgsql as $$
begin
  insert into change (slot, name, id)
  select distinct slot, tg_table_name, id from new_rows join outgoing using (slot);
  return null;
end $$;
create function note_old_rows() returns trigger language plpgsql as $$
begin
  insert into change (slot, name, id)
  select distinct slot, tg_table_name, id from old_rows join outgoing using (slot);
  return null;
end $$;
create function note_new_slots() returns trigger language plpgsql as $$
begin
  insert into change (slot, name) select distinct slot, tg_table_name from new_rows join outgoing using (slot);
  return null;
end $$;
create function note_old_slots() returns trigger language plpgsql as $$
begin
  insert into change (slot, name) select distinct slot, tg_table_name from old_rows join outgoing using (slot);
  return null;
end $$;
