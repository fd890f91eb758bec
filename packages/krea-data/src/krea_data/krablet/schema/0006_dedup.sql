-- migration 6: an index of perceptual hashes, links between pictures

-- A node is a picture's bytes: the 128-bit blake2b of its blob, in hex; rows with equal bytes are one node.

-- The band index: where a node's code has this value in this band. `id` is band and value, and the slot a hash of them,
-- so that one look-up goes to one shard wherever the pictures' rows lie. The 144 bits of shape come before 42 of colour.
create table dedup_band (
  slot int not null,
  id   text collate "C" not null,
  node uuid not null,
  code bit(186) not null,
  mean int not null,  -- rrggbb
  primary key (slot, id, node)
);

-- A node, and the limits within which it has been compared with all that came before it.
create table dedup_code (
  slot         int not null,
  id           text collate "C" not null,
  code         bit(186) not null,
  mean         int not null,
  vague        boolean not null,  -- next to no shape: not in the band index, so without links
  phash_limit  int not null,
  colour_limit int not null,
  mean_limit   int not null,
  primary key (slot, id)
);

-- Nodes whose cluster has changed since the stage's last repair; the mark changes with every change.
create table dedup_due (
  slot  int not null,
  id    text collate "C" not null,
  stage text collate "C" not null,
  mark  uuid not null,
  primary key (slot, id, stage)
);

-- Why two nodes belong together, on both ends: a copy by its distances, a proposed redraw by its similarity.
create table dedup_link (
  slot       int not null,
  id         text collate "C" not null,
  kind       text collate "C" not null,
  other      text collate "C" not null,
  phash      int,
  colour     int,
  mean       int,
  similarity double precision,
  rule       text not null,
  found_at   timestamptz not null default now(),
  primary key (slot, id, kind, other)
);

-- The rows of a node; of several the one with the least rank stays, then the first by id.
create table dedup_picture (
  slot    int not null,
  id      text collate "C" not null,
  picture text collate "C" not null,
  rank    double precision[] not null,
  primary key (slot, id, picture)
);
