-- use: events gap
-- Take a lapsed lease with the next epoch, or renew one's own. Every scheduler, standby too, calls this each H/3, so that
-- there is a tick to compare with. Makes `generation` and `h` where there are none.
-- KEYS[1] prefix
-- ARGV    node:nonce, the generation known (or empty), random, H in microseconds, the circuits that are not closed
--         (name=state pairs between |) and what waiting tenants were served (lane=number pairs between |), which a leader
--         leaves here for those who look, what submit holds deadlines against (four numbers between |, see
--         `Forecast`), and how quick workers are and what BATCH may take of them, for those who look (inc=numbers pairs
--         between |; each empty: nothing)
-- Returns LEADER token generation | STANDBY the leader's token, generation | VOID generation (another Redis history)
--         | OTHER_H h
local me = ARGV[1]
local known = call('MGET', K .. 'h', K .. 'generation')
local h, generation = known[1], known[2]
if h and h ~= ARGV[4] then return {'OTHER_H', h} end
gap()
if not h then call('SET', K .. 'h', ARGV[4]) end
if not generation then
  generation = ARGV[3]
  call('SET', K .. 'generation', generation)
end
local out
local told = {'circuits', 'served', 'forecast', 'speeds', 'rooms'}
local leader = call('HMGET', K .. 'leader', 'token', 'until', unpack(told))
local lapse = tonumber(leader[2] or '0')
if ARGV[2] ~= '' and ARGV[2] ~= generation then
  out = {'VOID', generation}
elseif leader[1] and match(leader[1], '^%d+:(.*)$') == me then
  call('HSET', K .. 'leader', 'until', int(now + L))
  out = {'LEADER', leader[1], generation}
elseif leader[1] and now < lapse and lapse <= now + L then
  out = {'STANDBY', leader[1], generation}
else
  local token = int(call('INCR', K .. 'epoch')) .. ':' .. me
  call('HSET', K .. 'leader', 'token', token, 'until', int(now + L), 'n', '0')
  ev('-', 'leader', token)
  out = {'LEADER', token, generation}
end
if out[1] == 'LEADER' then
  for i, name in ipairs(told) do
    if ARGV[4 + i] == (leader[2 + i] or '') then -- as a rule: it stands there already
    elseif ARGV[4 + i] == '' then call('HDEL', K .. 'leader', name)
    else call('HSET', K .. 'leader', name, ARGV[4 + i]) end
  end
end
emit('lead', me)
return out
