-- use: flight members
-- Publish new tokens of streaming requests, only where the member and the flight both carry the delivery: a reader
-- never sees tokens of an attempt that was taken back.
-- KEYS[1] prefix
-- ARGV    inc, then per request: id, delivery, attempt, offset (tokens of this attempt before these), token ids (packed),
--         text
-- Returns a word per request: OK, or STOP (drop the row and hand it back)
local inc, out = ARGV[1], {}
touch()
for i = 2, #ARGV, 6 do
  local id, delivery = ARGV[i], ARGV[i + 1]
  local m, f = held(call('HGET', K .. 'work:' .. inc, id)), record(id)
  if m and f and m.delivery == delivery and f[DELIVERY] == delivery then
    local _, most = string.match(f[TAIL], '^(%d+):(%d+)')
    local key = K .. 'tokens:' .. id .. ':' .. f[NONCE]
    call('XADD', key, 'MAXLEN', '~', 4 * tonumber(most) + 16, '*',
      'attempt', ARGV[i + 2], 'offset', ARGV[i + 3], 'ids', ARGV[i + 4], 'text', ARGV[i + 5])
    call('PEXPIRE', key, MAX_AGE / 1000)
    out[#out + 1] = 'OK'
  else
    out[#out + 1] = 'STOP'
  end
end
return out
