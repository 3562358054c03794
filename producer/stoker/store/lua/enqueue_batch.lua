-- Number the next run of a batch that nobody runs, and give that run some time to take the lease.
-- KEYS[1] prefix
-- ARGV    id, runs that the caller saw, nonce of the caller
-- Returns OK, number (again too) | GONE (it is held, over, paused within its window, or was numbered meanwhile)
local id, runs, by = ARGV[1], ARGV[2], ARGV[3]
touch()
local key = K .. 'batch:' .. id
local f = call('HMGET', key, 'state', 'until', 'runs', 'by', 'deadline')
local live = f[1] == 'queued' or f[1] == 'running' or (f[1] == 'paused' and tonumber(f[5]) <= now)
if not live then
  if f[1] ~= 'paused' then call('ZREM', K .. 'lapses', id) end
  return {'GONE'}
end
if f[4] == by and f[3] ~= runs then return {'OK', f[3]} end
local free = tonumber(f[2]) <= now or tonumber(f[2]) > now + BATCH_LEASE
if not free or f[3] ~= runs then return {'GONE'} end
local number = int(tonumber(runs) + 1)
call('HSET', key, 'runs', number, 'by', by, 'state', 'queued')
call('ZADD', K .. 'lapses', int(now + BATCH_LEASE), id)
return {'OK', number}
