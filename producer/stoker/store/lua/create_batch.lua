-- use: batch
-- Accept a batch file: its record, and a place among those that somebody must run. Its life ends by itself, with its
-- window and a retention.
-- KEYS[1] prefix
-- ARGV    id, spec, its digest, window in microseconds, epoch and round that its files are at (0, 0 for a new one)
-- Returns CREATED | SAME (there with this digest) | CONFLICT (there with another) | FULL (too many batches are kept)
local id, spec, digest, window, epoch, round = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local key, out = K .. 'batch:' .. id, nil
local known = call('HGET', key, 'digest')
if known then
  out = known == digest and 'SAME' or 'CONFLICT'
elseif call('ZCOUNT', K .. 'batches', int(now), '+inf') >= MAX_BATCHES then
  out = 'FULL'
else
  call('HSET', key, 'spec', spec, 'digest', digest, 'state', 'queued', 'want', 'run', 'round', round, 'epoch', epoch,
    'runs', '0', 'created', int(now), 'deadline', int(now + window), 'window', int(window), 'until', '0', 'holder', '')
  call('ZREMRANGEBYSCORE', K .. 'batches', '-inf', int(now))
  keep(key, id, window + BATCH_TTL)
  call('ZADD', K .. 'lapses', '0', id)
  out = 'CREATED'
end
return {out}
