-- use: batch
-- End a run: the batch is over, or paused, or free for its next run.
-- KEYS[1] prefix
-- ARGV    id, nonce of the run, state (completed, cancelled, expired, failed, paused or queued), progress (JSON, or
--         empty to leave it), why (for failed, else empty)
-- Returns OK (again too) | LOST (another run holds it) | UNKNOWN
local id, nonce, state, progress, why = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
touch()
local key = K .. 'batch:' .. id
local f = call('HMGET', key, 'holder', 'deadline', 'last', 'want')
if not f[1] then return {'UNKNOWN'} end
if f[1] ~= nonce then return {f[3] == nonce and 'OK' or 'LOST'} end
-- Asked to go on or to be cancelled while the run was ending for a pause: the next run sees to it.
if state == 'paused' and f[4] ~= 'pause' then state = 'queued' end
if progress ~= '' then call('HSET', key, 'progress', progress) end
call('HSET', key, 'state', state, 'why', why, 'holder', '', 'last', nonce, 'until', '0')
if state == 'paused' then
  call('ZADD', K .. 'lapses', f[2], id)
elseif state == 'queued' then
  call('ZADD', K .. 'lapses', '0', id)
else
  call('HSET', key, 'ended', int(now))
  call('ZREM', K .. 'lapses', id)
  keep(key, id, BATCH_TTL)
end
return {'OK'}
