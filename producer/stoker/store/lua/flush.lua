-- Publish new tokens of streaming requests, and of others what an attempt leaves for the next one when it is preempted; only where the member and the flight both carry the delivery: a reader
-- never sees tokens of an attempt that was taken back. What is there already is not published again: an entry's id is
-- <attempt>-<offset + 1>, which says both, and Redis takes none that is not above the last one.
-- KEYS[1] prefix
-- ARGV    inc, then per request: id, delivery, attempt, offset (tokens of the answer before these), token ids (packed),
--         text
-- Returns a word per request: OK, or STOP (drop the row and hand it back)
local inc, out, ids, flight_keys = ARGV[1], {}, {}, {}
for i = 2, #ARGV, 6 do
  local attempt, offset = match(ARGV[i + 2] or '', '^%d+$'), match(ARGV[i + 3] or '', '^%d+$')
  if not attempt or not offset or not ARGV[i + 5] or #attempt > 15 or #offset > 15 then
    return redis.error_reply('BADCALL: the tokens of ' .. ARGV[i])
  end
  ids[#ids + 1], flight_keys[#flight_keys + 1] = ARGV[i], K .. 'flight:' .. ARGV[i]
end
touch()
if #ids == 0 then return out end
-- Of a flight record what is asked for here: taking all of it apart takes three times as long.
local PARTS = '^' .. string.rep('[^|]*|', 10) .. '([^|]*)|[^|]*|[^|]*|[^|]*|%d+:(%d+)[^|]*|[^|]*|[^|]*|([^|]*)|'

-- The stream lives at most as long as its request may; what an attempt left for the next one not that long. It is cut where
-- an answer begins (anew): one that goes on has an entry for each token at most, and to add one then costs half as much.
local function publish(id, flight, attempt, offset, at)
  local nonce, most, streamed = match(flight, PARTS)
  local key, entry = K .. 'tokens:' .. id .. ':' .. nonce, attempt .. '-' .. int(offset + 1)
  local ids, text = ARGV[at + 4], ARGV[at + 5]
  local goes_on = streamed == '1' and offset ~= '0'
  local added = goes_on and redis.pcall('XADD', key, 'NOMKSTREAM', entry, 'ids', ids, 'text', text)
  if not added then
    goes_on = false
    added = redis.pcall('XADD', key, 'MAXLEN', '~', int(3 * most + 16), entry, 'ids', ids, 'text', text)
  end
  if type(added) == 'table' and added.err then
    local why = tostring(added.err)
    if not string.find(why, 'equal or smaller', 1, true) then error(why) end
  elseif not goes_on then
    call('PEXPIRE', key, streamed == '1' and MAX_AGE / 1000 or TOKENS_TTL)
  end
end

-- Both records begin with their delivery.
local function begins(record, mark) return string.find(record, mark, 1, true) == 1 end

local members, flights = call('HMGET', K .. 'work:' .. inc, unpack(ids)), call('MGET', unpack(flight_keys))
for i, id in ipairs(ids) do
  local at, member, flight = 6 * i - 4, members[i], flights[i]
  local mark = ARGV[at + 1] .. '|'
  if member and flight and begins(flight, mark) and begins(member, mark) then
    publish(id, flight, ARGV[at + 2], ARGV[at + 3], at)
    out[i] = 'OK'
  else
    out[i] = 'STOP'
  end
end
return out
