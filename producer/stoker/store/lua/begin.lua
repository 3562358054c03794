-- use: events counts flight members drops finish
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
local stamp = int(now)
-- Of a flight record what changes here, and what lies between as it is: an attempt is counted without taking it apart.
local PARTS = '^([^|]*)|[^|]*|([^|]*)|(%d+)|([^|]*|[^|]*|[^|]*|[^|]*)|[^|]*|(.*|(%d+))$'

local function give(id, attempt)
  wanted[#wanted + 1] = K .. 'payload:' .. id
  return '', attempt
end

local function judge(id, member, flight, flight_key)
  local m_delivery, cost, state, _, class, before
  if member then m_delivery, cost, state, _, class, before = match(member, MEMBER) end
  local f_delivery, score, attempts, charged, rest, deadline
  if flight then f_delivery, score, attempts, charged, rest, deadline = match(flight, PARTS) end
  if m_delivery ~= delivery or f_delivery ~= delivery then
    if m_delivery == delivery and state ~= 'R' then drop(id, tonumber(cost)) end
    return 'GONE', ''
  end
  if state == 'R' then return give(id, attempts) end
  if deadline ~= '0' and now >= tonumber(deadline) then
    finish(id, decode(flight), 'expired', 'late', '', '', false)
    drop(id, tonumber(cost))
    return 'LATE', ''
  end
  attempts = int(tonumber(attempts) + 1)
  local n = #entries
  entries[n + 1], entries[n + 2] = id, delivery .. '|' .. cost .. '|R|' .. stamp .. '|' .. class .. '|' .. before
  sets[n + 1], sets[n + 2] = flight_key, delivery .. '|R|' .. score .. '|' .. attempts .. '|' .. charged .. '|' .. stamp .. '|' .. rest
  if EVENTS then ev(id, 'begin', delivery, attempts, match(rest, '|([^|]*)')) end
  return give(id, attempts)
end

if #ids > 0 then
  local members, flights = call('HMGET', work, unpack(ids)), call('MGET', unpack(flight_keys))
  for i, id in ipairs(ids) do
    local word, attempt = judge(id, members[i], flights[i], flight_keys[i])
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
