-- use: events fence counts flight finish
-- Fail a waiting request that no registered worker could hold: a dead letter with reason unschedulable.
-- KEYS[1] prefix
-- ARGV    leader's token, lane, member
-- Returns OK | GONE (not in its lane) | FENCED
local id = match(ARGV[3], '^([^:]*):')
if not call('ZSCORE', K .. 'lane:' .. ARGV[2], ARGV[3]) then return {'GONE'} end
touch()
finish(id, record(id), 'failed', 'unschedulable', '', '', true)
finish_all()
counted()
emit('refuse', token)
return {'OK'}
