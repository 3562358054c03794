-- use: events fence flight members
-- Ask an incarnation to give back requests that it holds, by one doorbell without a delivery. Their credit is free at once:
-- what is dispatched from now on stands behind that doorbell. The worker answers by hand_back.
-- A request that was begun n times before is asked only once it has run for PREEMPT x 2^(n - 1): one that needs longer than
-- that without a break has it after a few times.
-- KEYS[1] prefix
-- ARGV    leader's token, inc, then per request: id, delivery
-- Returns OK, then a word per request: ASKED (before, too), GONE (not held under this delivery), SPARED (critical, a suspect,
--         or begun again too lately) | FENCED
local inc, ids, keys = ARGV[2], {}, {}
local work = K .. 'work:' .. inc
if #ARGV % 2 ~= 0 then return redis.error_reply('BADCALL: the number of arguments') end
for i = 3, #ARGV, 2 do
  ids[#ids + 1], keys[#keys + 1] = ARGV[i], K .. 'flight:' .. ARGV[i]
end
if #ids == 0 then return {'OK'} end
touch()
local members, flights = call('HMGET', work, unpack(ids)), call('MGET', unpack(keys))
local asked, entries, leaving, freed_by, out = {}, {}, {}, 0, {'OK'}

local function judge(id, delivery, m, f)
  if not m or not f or m.delivery ~= delivery or f[DELIVERY] ~= delivery then return 'GONE' end
  if m.cost == 0 or leaving[id] then return 'ASKED' end
  if m.class == 'critical' or m.class == 'suspect' then return 'SPARED' end
  if m.before > 0 and now - m.since < PREEMPT * 2 ^ (m.before - 1) and now >= m.since then return 'SPARED' end
  freed_by = freed_by + m.cost
  m.cost, leaving[id] = 0, true
  asked[#asked + 1], asked[#asked + 2] = id, delivery
  entries[#entries + 1], entries[#entries + 2] = id, held_text(m)
  ev(id, 'ask', delivery, inc)
  return 'ASKED'
end

for i, id in ipairs(ids) do
  out[i + 1] = judge(id, ARGV[2 * i + 2], held(members[i]), flights[i] and decode(flights[i]))
end
if #asked > 0 then
  call('HSET', work, unpack(entries))
  call('HINCRBY', K .. 'credit', inc, -freed_by)
  call('XADD', K .. 'stream:' .. inc, '*', 'delivery', '', 'leave', table.concat(asked, ' '))
end
emit('make_room', token)
return out
