-- use: events incs
-- Leave for good: only with nothing held. A late duplicate of its register must not revive it, so it is void from here.
-- KEYS[1] prefix
-- ARGV    inc
-- Returns OK (again too) | HELD
local inc = ARGV[1]
if call('HLEN', K .. 'work:' .. inc) > 0 then return {'HELD'} end
touch()
if call('HEXISTS', K .. 'inc', inc) == 1 then
  forget_inc(inc)
  call('SET', K .. 'void:' .. inc, 'gone', 'PX', VOID_TTL)
  ring()
  ev('-', 'deregister', inc)
  emit('deregister', inc)
end
return {'OK'}
