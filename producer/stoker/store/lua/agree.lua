-- Agree on the number of shards: the first who comes with more than one fixes it, on the keys of the first shard. A queue
-- that workers serve or that has requests, and no number, is one of one shard. Hands out tickets, by which those who come
-- together find different shards. An operator who found all shards empty replaces the number that he found.
-- KEYS[1] prefix
-- ARGV    shards, how many tickets to take (0 or 1), the number to replace (empty: none)
-- Returns OK a ticket (0: none taken) | OTHER their number
if not match(ARGV[1] or '', '^[1-9]%d?%d?$') then return redis.error_reply('BADCALL: the number of shards') end
local shards, theirs = ARGV[1], call('GET', K .. 'shards')
if not theirs then
  local counts = call('HMGET', K .. 'counts', 'submitted', 'succeeded', 'failed', 'expired', 'cancelled')
  local live = tonumber(counts[1] or '0')
  for i = 2, #counts do live = live - tonumber(counts[i] or '0') end
  if live > 0 or call('HLEN', K .. 'inc') > 0 then theirs = '1' end
elseif theirs == ARGV[3] then
  theirs = nil
end
if theirs and theirs ~= shards then return {'OTHER', theirs} end
touch()
if shards == '1' then
  call('DEL', K .. 'shards')
elseif not theirs then
  call('SET', K .. 'shards', shards)
end
return {'OK', ARGV[2] == '1' and tostring(call('INCR', K .. 'tickets')) or '0'}
