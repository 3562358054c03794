-- use: events fence counts flight
-- Move retries that are due into their lanes with their ORIGINAL scores (a back-off used as a score would let retries
-- pass fresh work). What is due further ahead than the longest back-off was written before the clock stepped back.
-- KEYS[1] prefix
-- ARGV    leader's token
-- Returns how many | FENCED
touch()
local delayed = K .. 'delayed'
local due = call('ZRANGEBYSCORE', delayed, '-inf', int(now), 'LIMIT', 0, GROUP_MOST)
local ahead = call('ZRANGEBYSCORE', delayed, '(' .. int(now + BACKOFF_MAX), '+inf', 'LIMIT', 0, GROUP_MOST)
for _, id in ipairs(ahead) do due[#due + 1] = id end
for _, id in ipairs(due) do
  local f = record(id)
  f[STATE] = 'Q'
  call('ZADD', lane(f), f[SCORE], member(id, f))
  if f[GROUP] == '' then count_lane(f[CLASS], f[TENANT], 1) end
  if is_sheddable(f[TAIL]) then call('ZADD', K .. 'sheddable', f[SCORE], id) end
  save(id, f)
  ev(id, 'promote', f[GROUP] ~= '' and 'suspect' or f[CLASS], f[SCORE])
end
if #due > 0 then
  call('ZREM', delayed, unpack(due))
  counted()
  ring()
end
emit('promote', token)
return {#due}
