-- use: events fence gap counts flight requeue members drops incs finish
-- Take back what a dead incarnation holds, up to 512 members a call: back to their lanes with their original scores. Only if
-- it was superseded or reported, or its beat is older than T outside a grace. Voids it first, so that nothing is handed to it.
-- KEYS[1] prefix
-- ARGV    leader's token, inc
-- Returns members left (0: it is forgotten) | -1 (not yet) | FENCED
local inc = ARGV[2]
local grace = gap()
local c = inc_record(inc)
if not c then
  emit('reclaim', token)
  return {0}
end
local void = call('EXISTS', K .. 'void:' .. inc) == 1
if not void and c[LIFE] == 'live' then
  local beat = tonumber(call('ZSCORE', K .. 'beats', inc) or '0')
  if beat > now then
    call('ZADD', K .. 'beats', int(now), inc)
    beat = now
  end
  if grace or now - beat <= T then
    emit('reclaim', token)
    return {-1}
  end
  c[LIFE] = 'lost'
end
if not void then
  call('SET', K .. 'void:' .. inc, c[LIFE], 'PX', VOID_TTL)
  save_inc(inc, c)
  ev('-', 'void', inc, c[LIFE])
end

local crashed, crashes = {}, 0
for id in string.gmatch(c[CRASHED], '%S+') do
  crashed[id], crashes = true, crashes + 1
end
local faulty = c[CAUSE] == 'crash' or c[CAUSE] == 'hung'
local cause = c[CAUSE] ~= '' and c[CAUSE] or c[LIFE]

-- Who pays: a suspect lost in company is only set apart again; a crash makes its set suspects, a second one alone convicts.
-- Returns why the request has to end, if it has to.
local function blame(id, m, f, company)
  if m.class == 'suspect' and company then
    f[GROUP] = inc
    return nil
  end
  f[LOSSES] = int(tonumber(f[LOSSES]) + 1)
  if faulty and crashed[id] then
    f[GROUP] = inc
    if crashes == 1 then f[SOLO] = int(tonumber(f[SOLO]) + 1) end
    if tonumber(f[SOLO]) >= 2 then return 'poison' end
  elseif tonumber(f[LOSSES]) > 3 then
    f[GROUP] = inc
  end
  if tonumber(f[LOSSES]) >= MAX_LOSSES then return 'worker_lost' end
end

local function take_back(id, m, f, company)
  drop(id, m.cost)
  if not f or f[DELIVERY] ~= m.delivery then return end
  local verdict
  if m.state == 'R' then
    ended(f, inc, cause)
    verdict = blame(id, m, f, company)
  end
  if verdict then
    finish(id, f, 'failed', verdict, call('GET', K .. 'obituary:' .. inc) or '', inc, true)
  else
    requeue(id, f, c[LIFE])
  end
end

local ids = call('HKEYS', K .. 'work:' .. inc)
local left = math.max(#ids - GROUP_MOST, 0)
for i = #ids, GROUP_MOST + 1, -1 do ids[i] = nil end
if #ids > 0 then
  local members, keys, running = call('HMGET', K .. 'work:' .. inc, unpack(ids)), {}, 0
  for i, id in ipairs(ids) do
    members[i] = held(members[i])
    keys[i] = K .. 'flight:' .. id
    if members[i].state == 'R' then running = running + 1 end
  end
  for i, text in ipairs(call('MGET', unpack(keys))) do take_back(ids[i], members[i], text and decode(text), running > 1) end
  drop_all(inc)
  finish_all()
  counted()
end
if left == 0 then forget_inc(inc) end
ring()
emit('reclaim', token)
return {left}
