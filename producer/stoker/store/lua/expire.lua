-- use: events fence gap counts flight finish
-- End what is past its deadline, or older than the maximum age at the head of a lane: EXPIRED, RUNNING too. Nothing in a
-- grace. Forgets dead letters that are past their retention, and stops counting the bytes of results that lapsed.
-- KEYS[1] prefix
-- ARGV    leader's token
-- Returns the ids | FENCED
local grace = gap()
local out, seen = {}, {}
local function expire(id, reason)
  local f = not seen[id] and record(id)
  seen[id] = true
  if f then
    out[#out + 1] = id
    finish(id, f, 'expired', reason, '', '', false)
  end
end
local function expire_old(name)
  for _, mb in ipairs(call('ZRANGE', K .. 'lane:' .. name, 0, 7)) do
    local id = match(mb, '^([^:]*):')
    local accepted = tonumber(call('GETRANGE', K .. 'payload:' .. id, 0, STAMP - 1))
    if accepted and now - accepted > MAX_AGE then expire(id, 'age') end
  end
end
if not grace then
  for _, id in ipairs(call('ZRANGEBYSCORE', K .. 'deadlines', '-inf', int(now), 'LIMIT', 0, GROUP_MOST)) do expire(id, 'deadline') end
  for name in pairs(LANES) do expire_old(name) end
  -- Of the tenants' lanes some by chance, so that many of them keep nobody waiting; the others' turn comes.
  for _, name in ipairs(call('HRANDFIELD', K .. 'active', 128) or {}) do
    if match(name, ':') then expire_old(name) end
  end
  call('ZREMRANGEBYSCORE', K .. 'dead', '-inf', int(now - DEAD_TTL * 1000))
  finish_all()
  for _, slice in ipairs(call('ZRANGEBYSCORE', K .. 'kept', '-inf', int(now), 'LIMIT', 0, GROUP_MOST)) do
    local bytes = call('HGETALL', K .. 'kept:' .. slice)
    for i = 1, #bytes, 2 do count('kept_bytes', bytes[i], -tonumber(bytes[i + 1])) end
    call('DEL', K .. 'kept:' .. slice)
    call('ZREM', K .. 'kept', slice)
  end
  counted()
end
emit('expire', token)
return out
