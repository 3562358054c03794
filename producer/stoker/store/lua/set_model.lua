-- use: incs
-- Replace the queue's model card, once no worker of another model is registered. An empty identity forgets the card, so
-- that the next worker to register fixes it.
-- KEYS[1] prefix
-- ARGV    identity, card (msgpack)
-- Returns OK | BUSY
local all = call('HGETALL', K .. 'inc')
for i = 1, #all, 2 do
  local c = {match(all[i + 1], INC)}
  if c[IDENTITY] ~= ARGV[1] then return {'BUSY'} end
end
touch()
if ARGV[1] == '' then
  call('DEL', K .. 'card')
else
  call('SET', K .. 'card', ARGV[1] .. '|' .. ARGV[2])
end
return {'OK'}
