-- Take the lease of a batch if nobody holds it, or renew one's own, and note how far the run is. A run that was away
-- longer than its lease keeps it unless another took it meanwhile.
-- KEYS[1] prefix
-- ARGV    id, nonce of the run, epoch it holds (0 to take the lease), host it runs on, progress (JSON, or empty)
-- Returns HELD, epoch, want, round, microseconds until the window ends, microseconds since the batch was created, spec
--         | LOST (another run holds it, or it is no longer to be run) | UNKNOWN
local id, nonce, held, host, progress = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
touch()
local key = K .. 'batch:' .. id
local f = call('HMGET', key, 'state', 'holder', 'until', 'epoch', 'want', 'round', 'deadline', 'created', 'spec')
local state, holder = f[1], f[2]
if not state then return {'UNKNOWN'} end
local mine = holder == nonce
if held ~= '0' and not (mine and held == f[4]) then return {'LOST'} end
local free = tonumber(f[3]) <= now or tonumber(f[3]) > now + BATCH_LEASE
if not mine and (not free or state ~= 'queued' and state ~= 'running') then return {'LOST'} end
local epoch = f[4]
if not mine then epoch = int(call('HINCRBY', key, 'epoch', 1)) end
call('HSET', key, 'state', 'running', 'holder', nonce, 'host', host, 'until', int(now + BATCH_LEASE))
if progress ~= '' then call('HSET', key, 'progress', progress) end
call('ZADD', K .. 'lapses', int(now + BATCH_LEASE), id)
return {'HELD', epoch, f[5], f[6], int(tonumber(f[7]) - now), int(now - tonumber(f[8])), f[9]}
