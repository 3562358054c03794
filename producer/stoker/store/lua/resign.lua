-- use: events
-- Give the lease up, so that a standby need not wait for it to lapse.
-- KEYS[1] prefix
-- ARGV    token
-- Returns OK (also where another leads)
touch()
if call('HGET', K .. 'leader', 'token') == ARGV[1] and call('HGET', K .. 'leader', 'until') ~= '0' then
  call('HSET', K .. 'leader', 'until', '0')
  ring()
  ev('-', 'resign', ARGV[1])
  emit('resign', ARGV[1])
end
return {'OK'}
