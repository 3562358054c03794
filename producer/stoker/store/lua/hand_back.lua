-- use: events counts flight requeue members
-- Give requests back uncharged: a drain, a full engine, or a row that the beat named. The member is dropped if its
-- delivery is the caller's; the request waits again, with its original score, if its flight still carries it.
-- KEYS[1] prefix
-- ARGV    inc, then per request: id, delivery
-- Returns OK
local inc, seen = ARGV[1], {}
if #ARGV % 2 ~= 1 then return redis.error_reply('BADCALL: the number of arguments') end
touch()
for i = 2, #ARGV, 2 do
  local id, delivery = ARGV[i], ARGV[i + 1]
  local m = not seen[id] and held(call('HGET', K .. 'work:' .. inc, id))
  if m and m.delivery == delivery then
    drop(id, m.cost)
    seen[id] = true
  end
  local text = call('GET', K .. 'flight:' .. id)
  local f = text and decode(text)
  if f and f[DELIVERY] == delivery then
    if f[STATE] == 'R' then ended(f, inc, 'handed_back') end
    requeue(id, f, 'handed_back')
  end
end
drop_all(inc)
counted()
ring()
emit('hand_back', inc)
return {'OK'}
