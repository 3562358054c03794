-- use: events incs
-- An operator's word that a worker takes no new work, or does again; its supervisor learns it from the next beat.
-- KEYS[1] prefix
-- ARGV    worker, drained (1 or 0)
-- Returns OK | UNKNOWN (no live incarnation of that name)
local found = false
local all = call('HGETALL', K .. 'inc')
for i = 1, #all, 2 do
  local c = {match(all[i + 1], INC)}
  if c[WORKER] == ARGV[1] and c[LIFE] == 'live' then
    found = true
    if c[DRAINED] ~= ARGV[2] then
      touch()
      c[DRAINED] = ARGV[2]
      save_inc(all[i], c)
      ring()
      ev('-', 'drain', all[i], ARGV[2])
    end
  end
end
emit('drain', ARGV[1])
return {found and 'OK' or 'UNKNOWN'}
