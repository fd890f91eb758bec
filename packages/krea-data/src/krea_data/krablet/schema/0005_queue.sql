-- migration 5: pauses, priorities, typed results

alter table task
  add column paused  boolean not null default false,
  add column bands   smallint[] not null default '{}',  -- the priorities other than 0 that rows of its queue have
  add column columns jsonb not null default '{}',       -- the typed columns of its results: type by name
  add column indexed text[] not null default '{}';      -- those of them that have an index

do $$
declare
  task_name text;
begin
  for task_name in select name from task where queued loop
    execute format(
      'alter table %I add column priority smallint not null default 0, alter column attempts type int,'
      ' add column held_until timestamptz not null default ''-infinity'', set (fillfactor = 50)',
      'queue_' || task_name);
    -- a lease was a time to come in run_at
    execute format('update %I set held_until = run_at, run_at = least(run_at, now()) where token is not null',
      'queue_' || task_name);
    execute format('drop index if exists %I', 'queue_' || task_name || '_by_time');
    execute format('create index %I on %I (run_at, n) where priority = 0',
      'queue_' || task_name || '_by_time', 'queue_' || task_name);
    execute format('create index %I on %I (priority, run_at, n) where priority <> 0',
      'queue_' || task_name || '_by_band', 'queue_' || task_name);
  end loop;
end
$$;
