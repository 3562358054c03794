-- Forget dead letters.
-- KEYS[1] prefix
-- ARGV    ids... (at most 512)
-- Returns how many there were
local keys = {}
for i = 1, #ARGV do keys[i] = K .. 'dead:' .. ARGV[i] end
if #keys == 0 then return {0} end
call('ZREM', K .. 'dead', unpack(ARGV))
return {call('UNLINK', unpack(keys))}
