-- use: events counts flight requeue members drops
-- Give requests back uncharged: a drain, a full engine, or a row that the beat named or make_room asked for. The member is
-- dropped if its delivery is the caller's; the request waits again, with its original score, if its flight still carries it.
-- KEYS[1] prefix
-- ARGV    inc, then per request: id, delivery
-- Returns OK
local inc, seen = ARGV[1], {}
if #ARGV % 2 ~= 1 then return redis.error_reply('BADCALL: the number of arguments') end
touch()
for i = 2, #ARGV, 2 do
  local id, delivery = ARGV[i], ARGV[i + 1]
  local m, cause = not seen[id] and held(call('HGET', K .. 'work:' .. inc, id)), 'handed_back'
  if m and m.delivery == delivery then
    drop(id, m.cost)
    seen[id] = true
    if m.cost == 0 then cause = 'preempted' end
  end
  local text = call('GET', K .. 'flight:' .. id)
  local f = text and decode(text)
  if f and delivery ~= '' and f[DELIVERY] == delivery then -- what waits has an empty one
    if f[STATE] == 'R' then ended(f, inc, cause) end
    requeue(id, f, cause)
    if cause == 'preempted' then count('preempted', '', 1) end
  end
end
drop_all(inc)
counted()
ring()
emit('hand_back', inc)
return {'OK'}
