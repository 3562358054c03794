-- use: members incs
-- A supervisor's heartbeat. Names the members whose requests moved on (the worker stops their rows and hands them back),
-- rings again for what was handed over longer than T ago, and takes the corrected costs of what is held.
-- KEYS[1] prefix
-- ARGV    inc, generation, H in microseconds, accepting (1 or 0), capacity, progress, rate (tokens/s), faults, successes,
--         figures (name=number pairs between commas), then per corrected member: id, delivery, cost
-- Returns OK drained (1 or 0), then id, delivery per named member | VOID reason | OTHER_H h
local inc = ARGV[1]
-- The scheduler reads all of these: one that is no number would stop it.
local function are_numbers()
  if #ARGV < 10 or #ARGV % 3 ~= 1 then return false end
  for i = 3, 9 do
    if #ARGV[i] > 20 or not match(ARGV[i], i == 7 and '^%d+%.?%d*$' or '^%d+$') then return false end
  end
  for pair in string.gmatch(ARGV[10], '[^,]+') do
    if #pair > 64 or not match(pair, '^[%w_]+=%d+$') then return false end
  end
  for i = 13, #ARGV, 3 do
    if #ARGV[i] > 15 or not match(ARGV[i], '^%d+$') then return false end
  end
  return true
end
if not are_numbers() then return redis.error_reply('BADCALL: a number of ' .. tostring(inc)) end
local void, c = call('GET', K .. 'void:' .. inc), inc_record(inc)
if void then return {'VOID', void} end
if not c then return {'VOID', 'unknown'} end
if call('GET', K .. 'generation') ~= ARGV[2] then return {'VOID', 'generation'} end
if c[LIFE] ~= 'live' then return {'VOID', c[LIFE]} end
local h = call('GET', K .. 'h')
if h and h ~= ARGV[3] then return {'OTHER_H', h} end
touch()
call('ZADD', K .. 'beats', int(now), inc)
if c[ACCEPTING] ~= ARGV[4] or c[CAPACITY] ~= ARGV[5] then ring() end
c[ACCEPTING], c[CAPACITY], c[PROGRESS], c[RATE] = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
c[FAULTS], c[SUCCESSES], c[FIGURES] = ARGV[8], ARGV[9], ARGV[10]
save_inc(inc, c)

local corrected = {}
for i = 11, #ARGV, 3 do corrected[ARGV[i] .. ' ' .. ARGV[i + 1]] = tonumber(ARGV[i + 2]) end

local work, all, changed, credit, again, out = K .. 'work:' .. inc, {}, {}, 0, {}, {'OK', c[DRAINED]}
local holder, since = match(call('GET', K .. 'quarantine') or '', '^(.*)|(%d+)$')
local evict = holder == inc and (now - tonumber(since) > QUARANTINE_PATIENCE or now < tonumber(since))

local function look(id, m, flight)
  local wanted = corrected[id .. ' ' .. m.delivery]
  if wanted and wanted ~= m.cost and m.cost > 0 then -- what was asked to leave stays free
    credit = credit + wanted - m.cost
    m.cost = wanted
    changed[#changed + 1], changed[#changed + 2] = id, held_text(m)
  end
  if not flight or match(flight, '^([^|]*)|') ~= m.delivery or evict and m.class ~= 'suspect' then
    out[#out + 1], out[#out + 2] = id, m.delivery
  elseif m.state == 'D' and (now - m.since > T or m.since > now) then
    m.since = now
    changed[#changed + 1], changed[#changed + 2] = id, held_text(m)
    local rung = again[m.delivery]
    if not rung then rung = {ids = {}, costs = {}} again[m.delivery] = rung end
    rung.ids[#rung.ids + 1], rung.costs[#rung.costs + 1] = id, int(m.cost)
  end
end

all = call('HGETALL', work)
for lo = 1, #all, 1024 do
  local hi, keys = math.min(#all, lo + 1023), {}
  for i = lo, hi, 2 do keys[#keys + 1] = K .. 'flight:' .. all[i] end
  for j, flight in ipairs(call('MGET', unpack(keys))) do
    look(all[lo + 2 * j - 2], held(all[lo + 2 * j - 1]), flight)
  end
end
for i = 1, #changed, 512 do call('HSET', work, unpack(changed, i, math.min(i + 511, #changed))) end
if credit ~= 0 then
  call('HINCRBY', K .. 'credit', inc, credit)
  if credit < 0 then ring() end
end
for delivery, rung in pairs(again) do
  call('XADD', K .. 'stream:' .. inc, '*', 'delivery', delivery, 'ids', table.concat(rung.ids, ' '),
    'costs', table.concat(rung.costs, ' '))
end
return out
