-- Publish new tokens of streaming requests, and of others what an attempt leaves for the next one when it is preempted; only where the member and the flight both carry the delivery: a reader
-- never sees tokens of an attempt that was taken back. What is there already is not published again: an entry's id is
-- <attempt>-<offset + 1>, which says both, and Redis takes none that is not above the last one.
-- KEYS[1] prefix
-- ARGV    inc, then per request: id, delivery, nonce, attempt, offset (tokens of the answer before these), token ids (packed),
--         text
-- Returns a word per request: OK, or STOP (drop the row and hand it back)
local inc, out, ids, flight_keys = ARGV[1], {}, {}, {}
for i = 2, #ARGV, 7 do
  local attempt, offset = match(ARGV[i + 3] or '', '^%d+$'), match(ARGV[i + 4] or '', '^%d+$')
  if not attempt or not offset or not ARGV[i + 6] or #attempt > 15 or #offset > 15 then
    return redis.error_reply('BADCALL: the tokens of ' .. ARGV[i])
  end
  ids[#ids + 1], flight_keys[#flight_keys + 1] = ARGV[i], K .. 'flight:' .. ARGV[i]
end
touch()
if #ids == 0 then return out end
-- Of a flight record what is asked for here where an answer begins: taking all of it apart takes three times as long.
local PARTS = '^' .. string.rep('[^|]*|', 10) .. '([^|]*)|[^|]*|[^|]*|[^|]*|%d+:(%d+)[^|]*|[^|]*|[^|]*|([^|]*)|'

-- Whether somebody reads the stream, by the place of that field from the end: behind it stand a time of 16 digits and another
-- one, or 0.
local function is_streamed(flight)
  return string.byte(flight, string.byte(flight, -2) == 124 and -20 or -35) == 49
end

-- The stream lives at most as long as its request may; what an attempt left for the next one not that long. It is cut where
-- an answer begins (anew): one that goes on has an entry for each token at most, and to add one then costs half as much.
local function publish(id, flight, at)
  local key, offset = K .. 'tokens:' .. id .. ':' .. ARGV[at + 2], ARGV[at + 4]
  local entry, ids, text = ARGV[at + 3] .. '-' .. int(offset + 1), ARGV[at + 5], ARGV[at + 6]
  local added = offset ~= '0' and is_streamed(flight) and redis.pcall('XADD', key, 'NOMKSTREAM', entry, 'ids', ids, 'text', text)
  local nonce, most, streamed
  if not added then
    nonce, most, streamed = match(flight, PARTS)
    if nonce ~= ARGV[at + 2] then return 'STOP' end
    added = redis.pcall('XADD', key, 'MAXLEN', '~', int(3 * most + 16), entry, 'ids', ids, 'text', text)
  end
  if type(added) == 'table' and added.err then
    local why = tostring(added.err)
    if not string.find(why, 'equal or smaller', 1, true) then error(why) end
  elseif streamed then
    call('PEXPIRE', key, streamed == '1' and MAX_AGE / 1000 or TOKENS_TTL)
  end
  return 'OK'
end

-- Both records begin with their delivery.
local function begins(record, mark) return string.find(record, mark, 1, true) == 1 end

local members, flights = call('HMGET', K .. 'work:' .. inc, unpack(ids)), call('MGET', unpack(flight_keys))
for i, id in ipairs(ids) do
  local at, member, flight = 7 * i - 5, members[i], flights[i]
  local mark = ARGV[at + 1] .. '|'
  if member and flight and begins(flight, mark) and begins(member, mark) then
    out[i] = publish(id, flight, at)
  else
    out[i] = 'STOP'
  end
end
return out
