-- migration 3: records, marks of producers

-- Contended keyed values beside the results; each has a table record_<name>.
create table record (
  name    text collate "C" primary key,
  columns jsonb not null  -- [[name, type, rule], ...] in their order
);

-- Which requests of a producer this shard has stored: all below `floor`, and `seqs` above, in order. Written in the
-- transaction of the data, so a request that is sent again is known by its mark. A request's rows that go to one shard
-- go in one transaction, so one mark speaks for all slots that have always been here.
create table producer_mark (
  producer uuid primary key,
  floor    bigint not null,
  seqs     bigint[] not null,
  at       timestamptz not null default now()
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- Slots with marks of their own, because they have moved or begin to; both tables go with the slot.
create table tracked_slot (slot int primary key);
create table slot_mark (
  slot     int not null,
  producer uuid not null,
  floor    bigint not null,
  seqs     bigint[] not null,
  at       timestamptz not null default now(),
  primary key (slot, producer)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- A slot that begins to move gets its own marks from those of the shard, while nobody writes marks.
create function track_slot() returns trigger language plpgsql as $$
begin
  lock table producer_mark in share row exclusive mode;
  insert into tracked_slot values (new.slot) on conflict do nothing;
  if found then
    insert into slot_mark (slot, producer, floor, seqs, at)
    select new.slot, producer, floor, seqs, at from producer_mark;
  end if;
  return null;
end $$;
create trigger track_slot after insert on outgoing for each row execute function track_slot();

-- What of these requests was refused, for the answer to a request that is sent again.
create table producer_refusal (
  slot     int not null,
  producer uuid not null,
  seq      bigint not null,
  id       text collate "C" not null,
  message  text not null,
  at       timestamptz not null default now()
);
create index producer_refusal_by_producer on producer_refusal (producer, seq);

-- Ends a transaction that was sent in one piece, if what it relies on is not so.
create function demand(holds boolean, code text) returns void language plpgsql as $$
begin
  if holds is not true then
    raise exception 'the transaction relies on what is not so' using errcode = code;
  end if;
end $$;
