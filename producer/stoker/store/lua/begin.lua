-- use: events counts flight members finish
-- Start what a doorbell names: an attempt counts from here. Acks and deletes the doorbell, also with no ids left.
-- A member under this delivery whose request moved on is dropped unless it runs (its row is still there; beat names it).
-- KEYS[1] prefix
-- ARGV    inc, stream entry, delivery, ids...
-- Returns two entries per id: payload (see flight.lua) and attempt | GONE '' | LATE '' (past its deadline: EXPIRED here)
local inc, delivery = ARGV[1], ARGV[3]
local work, ids, flight_keys = K .. 'work:' .. inc, {}, {}
for i = 4, #ARGV do
  ids[i - 3], flight_keys[i - 3] = ARGV[i], K .. 'flight:' .. ARGV[i]
end
touch()
-- First, so that a wrong entry fails before anything changed.
call('XACK', K .. 'stream:' .. inc, 'workers', ARGV[2])
call('XDEL', K .. 'stream:' .. inc, ARGV[2])
local out, entries, sets, wanted, places = {}, {}, {}, {}, {}

local function start(id, m, f, flight_key)
  if m.state ~= 'R' then
    m.state, m.since = 'R', now
    f[STATE], f[ATTEMPTS], f[BEGUN] = 'R', int(tonumber(f[ATTEMPTS]) + 1), int(now)
    entries[#entries + 1], entries[#entries + 2] = id, held_text(m)
    sets[#sets + 1], sets[#sets + 2] = flight_key, table.concat(f, '|')
    ev(id, 'begin', delivery, f[ATTEMPTS], f[NONCE])
  end
  wanted[#wanted + 1] = K .. 'payload:' .. id
  return '', f[ATTEMPTS]
end

local function judge(id, m, f, flight_key)
  local mine = m and m.delivery == delivery
  if not (mine and f and f[DELIVERY] == delivery) then
    if mine and m.state ~= 'R' then drop(id, m) end
    return 'GONE', ''
  end
  local deadline = tonumber(f[DEADLINE])
  if deadline > 0 and now >= deadline and m.state ~= 'R' then
    finish(id, f, 'expired', 'late', '', '', false)
    drop(id, m)
    return 'LATE', ''
  end
  return start(id, m, f, flight_key)
end

if #ids > 0 then
  local members, flights = call('HMGET', work, unpack(ids)), call('MGET', unpack(flight_keys))
  for i, id in ipairs(ids) do
    local word, attempt = judge(id, held(members[i]), flights[i] and decode(flights[i]), flight_keys[i])
    out[2 * i - 1], out[2 * i] = word, attempt
    if word == '' then places[#places + 1] = 2 * i - 1 end
  end
  if #entries > 0 then
    call('HSET', work, unpack(entries))
    call('MSET', unpack(sets))
  end
  drop_all(inc)
  finish_all()
  counted()
  if #wanted > 0 then
    for j, payload in ipairs(call('MGET', unpack(wanted))) do out[places[j]] = payload end
  end
end
emit('begin', inc)
return out
