-- Remove a file that a batch kept in Redis.
-- KEYS[1] prefix
-- ARGV    batch id, file
-- Returns OK (again too)
local id, file = ARGV[1], ARGV[2]
touch()
call('HDEL', K .. 'files:' .. id, file)
call('UNLINK', K .. 'file:' .. id .. ':' .. file)
return {'OK'}
