-- migration 4: maps with stored functions, over ranges that idle workers split

-- A function as it was submitted, on the first shard. Workers check the signature before they unpickle.
create table fn (
  sha256      text collate "C" primary key,  -- of the blob
  blob        bytea not null,
  signature   bytea not null,                -- HMAC-SHA256 over versions and blob
  python      text not null,
  cloudpickle text not null,
  created_by  text not null,
  created_at  timestamptz not null default now()
);

-- A map as this shard knows it: what was asked, and whether to go on. It is done when no range of it is left.
create table map (
  name       text collate "C" primary key,
  run        uuid not null,   -- the same on all shards; a later map of the same name is another run
  question   jsonb not null,  -- what makes it the same map: target, filter, range of keys
  limits     jsonb not null,  -- batch, times, memory; these may change when a map is resumed
  fn         text collate "C",
  state      text not null default 'running' check (state in ('running', 'cancelled', 'failed')),
  problem    text,
  slots      bigint not null default 0,  -- the version of the slot map that the ranges were planned under
  started_at timestamptz not null default now()
);

-- lower never changes, so that readers can follow the cursor from there; ahead is the end of the page that the
-- worker reads next, which nobody may steal; expected counts rows by sample; crashes counts leases that ran out.
alter table span
  alter column number type bigint,
  add column lower      text collate "C" not null default '',
  add column ahead      text collate "C" not null default '',
  add column expected   bigint not null default 0,
  add column rows       bigint not null default 0,
  add column failed     bigint not null default 0,
  add column crashes    int not null default 0,
  add column planned_at timestamptz not null default now();
