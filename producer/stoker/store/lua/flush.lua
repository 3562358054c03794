-- use: flight members
-- Publish new tokens of streaming requests, and of others what an attempt leaves for the next one when it is preempted; only where the member and the flight both carry the delivery: a reader
-- never sees tokens of an attempt that was taken back. What is there already is not published again.
-- KEYS[1] prefix
-- ARGV    inc, then per request: id, delivery, attempt, offset (tokens of the answer before these), token ids (packed),
--         text
-- Returns a word per request: OK, or STOP (drop the row and hand it back)
local inc, out = ARGV[1], {}
for i = 2, #ARGV, 6 do
  local attempt, offset = match(ARGV[i + 2] or '', '^%d+$'), match(ARGV[i + 3] or '', '^%d+$')
  if not attempt or not offset or not ARGV[i + 5] then return redis.error_reply('BADCALL: the tokens of ' .. ARGV[i]) end
end
touch()
for i = 2, #ARGV, 6 do
  local id, delivery = ARGV[i], ARGV[i + 1]
  local m, f = held(call('HGET', K .. 'work:' .. inc, id)), record(id)
  if m and f and m.delivery == delivery and f[DELIVERY] == delivery then
    local _, most = match(f[TAIL], '^(%d+):(%d+)')
    local key = K .. 'tokens:' .. id .. ':' .. f[NONCE]
    local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    local again = last and last[2][2] == ARGV[i + 2] and tonumber(last[2][4]) >= tonumber(ARGV[i + 3])
    if not again then
      call('XADD', key, 'MAXLEN', '~', 4 * tonumber(most) + 16, '*',
        'attempt', ARGV[i + 2], 'offset', ARGV[i + 3], 'ids', ARGV[i + 4], 'text', ARGV[i + 5])
      call('PEXPIRE', key, f[STREAM] == '1' and MAX_AGE / 1000 or TOKENS_TTL)
    end
    out[#out + 1] = 'OK'
  else
    out[#out + 1] = 'STOP'
  end
end
return out
