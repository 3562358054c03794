-- use: events counts flight names
-- Submit a dead letter's payload again under a new id that links to the old one; the dead letter is used up.
-- KEYS[1] prefix
-- ARGV    old id, new id, nonce, reply channel
-- Returns OK (again too) | UNKNOWN (no such dead letter) | CONFLICT (the new id is taken)
local old, id, nonce, reply = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not (is_name(id) and is_name(nonce) and (reply == '' or is_name(reply))) then
  return redis.error_reply('BADCALL: the new id, the nonce and the channel must be names')
end
local f = fresh(id)
if f then return {f[NONCE] == nonce and 'OK' or 'CONFLICT'} end
if call('EXISTS', K .. 'result:' .. id) == 1 then
  local life = match(call('GETRANGE', K .. 'result:' .. id, 0, HEAD), '^[^|]*|([^|]*)|')
  return {life == nonce and 'OK' or 'CONFLICT'}
end
local dead = call('GET', K .. 'dead:' .. old)
if not dead then return {'UNKNOWN'} end
local size, behind = match(dead, '^' .. string.rep('[^|]*|', 6) .. '(%d+)|()')
local start = behind + tonumber(size) + STAMP
local _, digest, class, tenant, timeout, term, tail, bytes, _, stream = match(dead, HEADER, start)
local _, stop = string.find(dead, HEADER, start)
local head = table.concat({'1', nonce, digest, class, tenant, timeout, term, tail, bytes, reply, stream, old}, '|') .. '|'
call('SET', K .. 'payload:' .. id, string.format('%016.0f', now) .. head .. string.sub(dead, stop + 1))
local base = call('MGET', K .. 'mark', K .. 'skew')
local t = math.max(now + tonumber(base[2] or '0'), tonumber(base[1] or '0')) + 1
local lives = tonumber(timeout)
call('ZADD', K .. 'lane:' .. lane_of(class, tenant), int(t + tonumber(term)), id .. ':' .. tail)
if is_sheddable(tail) then call('ZADD', K .. 'sheddable', int(t + tonumber(term)), id) end
if lives > 0 then call('ZADD', K .. 'deadlines', int(now + lives), id) end
call('SET', K .. 'mark', int(t))
call('DEL', K .. 'dead:' .. old)
call('ZREM', K .. 'dead', old)
count_one(tenant, 1, tonumber(bytes), tail)
count_lane(class, tenant, 1)
count('submitted', tenant, 1)
counted()
ring()
ev(id, 'submit', nonce, class, tail, lives > 0 and int(now + lives) or '0', int(t + tonumber(term)))
emit('retry_dead', '-')
return {'OK'}
