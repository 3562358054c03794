-- use: events counts flight finish
-- End a live request as CANCELLED at once. A row that a worker still holds stays its member: it occupies memory, and
-- the worker learns of it by its next beat.
-- KEYS[1] prefix
-- ARGV    id, nonce (empty: whatever life the id is in)
-- Returns OK (again too), DONE (it ended otherwise), UNKNOWN
local id, nonce = ARGV[1], ARGV[2]
local f = record(id)
if not f then
  local state, life = match(call('GETRANGE', K .. 'result:' .. id, 0, HEAD), '^([^|]*)|([^|]*)|')
  if not state or nonce ~= '' and life ~= nonce then return {'UNKNOWN'} end
  return {state == 'cancelled' and 'OK' or 'DONE'}
end
if nonce ~= '' and f[NONCE] ~= nonce then return {'UNKNOWN'} end
touch()
finish(id, f, 'cancelled', '', '', '', false)
finish_all()
counted()
emit('cancel', '-')
return {'OK'}
