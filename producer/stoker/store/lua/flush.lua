-- Publish new tokens of streaming requests, and of others what an attempt leaves for the next one when it is preempted; only where the member and the flight both carry the delivery: a reader
-- never sees tokens of an attempt that was taken back. What is there already is not published again: an entry's id is
-- <attempt>-<offset + 1>, and Redis takes none that is not above the last one.
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
local PARTS = '^([^|]*)|' .. string.rep('[^|]*|', 9) .. '([^|]*)|[^|]*|[^|]*|[^|]*|%d+:(%d+)[^|]*|[^|]*|[^|]*|([^|]*)|'

-- The stream lives at most as long as its request may; what an attempt left for the next one not that long.
local function publish(key, attempt, offset, most, streamed, at)
  local added = redis.pcall('XADD', key, 'MAXLEN', '~', 4 * tonumber(most) + 16, attempt .. '-' .. int(tonumber(offset) + 1),
    'attempt', attempt, 'offset', offset, 'ids', ARGV[at + 4], 'text', ARGV[at + 5])
  if type(added) == 'table' and added.err then
    local why = tostring(added.err)
    if not string.find(why, 'equal or smaller', 1, true) then error(why) end
  elseif streamed ~= '1' then
    call('PEXPIRE', key, TOKENS_TTL)
  elseif call('XLEN', key) == 1 then
    call('PEXPIRE', key, MAX_AGE / 1000)
  end
end

local members, flights = call('HMGET', K .. 'work:' .. inc, unpack(ids)), call('MGET', unpack(flight_keys))
for i, id in ipairs(ids) do
  local at, member, flight = 6 * i - 4, members[i], flights[i]
  local delivery, nonce, most, streamed
  if member and flight then delivery, nonce, most, streamed = match(flight, PARTS) end
  if delivery == ARGV[at + 1] and match(member, '^[^|]*') == delivery then
    publish(K .. 'tokens:' .. id .. ':' .. nonce, ARGV[at + 2], ARGV[at + 3], most, streamed, at)
    out[i] = 'OK'
  else
    out[i] = 'STOP'
  end
end
return out
