-- use: batch
-- Cancel, pause or resume a batch, or run its failed lines again. A run hears it when it next renews its lease.
-- KEYS[1] prefix
-- ARGV    id, word (cancel, pause, resume or retry), round that the caller saw, microseconds of a new window (retry)
-- Returns OK, state (again too) | ENDED, state (it is over) | LIVE, state (retry: it is not over yet) | UNKNOWN
local id, word, round, window = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
touch()
local key = K .. 'batch:' .. id
local f = call('HMGET', key, 'state', 'want', 'until', 'deadline', 'round')
local state = f[1]
if not state then return {'UNKNOWN'} end
local over = state ~= 'queued' and state ~= 'running' and state ~= 'paused'
local free = tonumber(f[3]) <= now or tonumber(f[3]) > now + BATCH_LEASE
if word == 'retry' then
  if f[5] ~= round then return {'OK', state} end
  if not over then return {'LIVE', state} end
  call('HSET', key, 'round', int(tonumber(round) + 1), 'deadline', int(now + window), 'window', int(window), 'why', '')
  call('HDEL', key, 'ended', 'progress')
  state = 'queued'
  call('HSET', key, 'state', state, 'want', 'run')
  call('ZADD', K .. 'lapses', '0', id)
  keep(key, id, window + BATCH_TTL)
elseif word == 'resume' and (state == 'failed' or state == 'paused') then
  if state == 'failed' then keep(key, id, math.max(0, tonumber(f[4]) - now) + BATCH_TTL) end
  call('HDEL', key, 'ended', 'why')
  state = 'queued'
  call('HSET', key, 'state', state, 'want', 'run')
  call('ZADD', K .. 'lapses', '0', id)
elseif over then
  return {'ENDED', state}
elseif word == 'cancel' then
  if state == 'paused' then state = 'queued' end
  call('HSET', key, 'want', 'cancel', 'state', state)
  if free then call('ZADD', K .. 'lapses', '0', id) end
elseif f[2] ~= 'cancel' then
  call('HSET', key, 'want', word == 'pause' and 'pause' or 'run')
  if word == 'pause' and free then
    state = 'paused'
    call('HSET', key, 'state', state)
    call('ZADD', K .. 'lapses', f[4], id)
  end
end
return {'OK', state}
