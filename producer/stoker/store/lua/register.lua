-- use: events incs
-- Announce an incarnation. The worker's older one becomes superseded, so that its work is reclaimable at once. The first
-- card fixes what model the queue serves.
-- KEYS[1] prefix
-- ARGV    inc, worker, number, H in microseconds, random, identity, card (msgpack), capacity, rows, budget, mode, cache
-- Returns OK generation | VOID reason | OTHER_MODEL card | OTHER_H h
local inc, worker, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local void = call('GET', K .. 'void:' .. inc)
if void then return {'VOID', void} end
local h = call('GET', K .. 'h')
if h and h ~= ARGV[4] then return {'OTHER_H', h} end
local generation = call('GET', K .. 'generation')
local before = inc_record(inc)
if before then
  if before[LIFE] ~= 'live' then return {'VOID', before[LIFE]} end
  return {'OK', generation or ''}
end
local card = call('GET', K .. 'card')
if card and match(card, '^([^|]*)|') ~= ARGV[6] then return {'OTHER_MODEL', card} end

local all, older = call('HGETALL', K .. 'inc'), {}
for i = 1, #all, 2 do
  local c = {match(all[i + 1], INC)}
  if c[WORKER] == worker then
    local theirs = tonumber(match(all[i], ':(%d+)-[^:]*$'))
    if theirs > number then return {'VOID', 'superseded'} end
    if c[LIFE] == 'live' then older[all[i]] = c end
  end
end
touch()
if not generation then
  generation = ARGV[5]
  call('SET', K .. 'generation', generation)
end
if not card then call('SET', K .. 'card', ARGV[6] .. '|' .. ARGV[7]) end
for old, c in pairs(older) do
  c[LIFE] = 'superseded'
  save_inc(old, c)
  ev('-', 'superseded', old)
end
save_inc(inc, {worker, ARGV[6], ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12], 'live', '1', '0', '0', '0', '0', '0', '', '', ''})
call('HSET', K .. 'credit', inc, '0')
call('ZADD', K .. 'beats', int(now), inc)
call('XGROUP', 'CREATE', K .. 'stream:' .. inc, 'workers', '0', 'MKSTREAM')
ring()
ev('-', 'register', inc)
emit('register', inc)
return {'OK', generation}
