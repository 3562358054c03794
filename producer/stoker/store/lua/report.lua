-- use: events incs
-- A supervisor's word that its child is dead, with the cause (killed, crash or hung) and the crash set (the ids in the
-- step that was running). Its work is reclaimable at once. The obituary (msgpack, may be empty) is what a request that it
-- is blamed on will say of its end.
-- KEYS[1] prefix
-- ARGV    inc, cause, obituary, ids...
-- Returns OK (also where there is no such incarnation), and 1 where it held the quarantine: its suspects killed it, else 0
local inc = ARGV[1]
local c = inc_record(inc)
if c and c[LIFE] ~= 'dead' then
  local ids = {}
  for i = 4, #ARGV do ids[i - 3] = ARGV[i] end
  touch()
  if ARGV[3] ~= '' then call('SET', K .. 'obituary:' .. inc, ARGV[3], 'PX', VOID_TTL) end
  c[LIFE], c[CAUSE], c[CRASHED] = 'dead', ARGV[2], table.concat(ids, ' ')
  save_inc(inc, c)
  ring()
  ev('-', 'report', inc, ARGV[2], #ids, c[CRASHED])
  emit('report', inc)
end
local holder = match(call('GET', K .. 'quarantine') or '', '^(.*)|')
return {'OK', holder == inc and '1' or '0'}
