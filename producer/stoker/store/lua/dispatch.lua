-- use: events fence counts flight members incs
-- Hand up to 512 waiting requests to one incarnation: out of their lanes, into its work hash, credit reserved, one doorbell.
-- Suspects go alone to an incarnation that holds nothing, one quarantine at a time in the whole queue.
-- KEYS[1] prefix
-- ARGV    leader's token, n (rises with every call of a token, refused ones too), inc, then per request: lane, member, cost
--         (tokens that will be reserved, at most prompt + max_tokens)
-- Returns OK delivery, then a word per request: TOOK, GONE (not in its lane), HELD (by this inc already), FULL (no credit)
--         | SEEN delivery ids... (this n was used: what is still held under it) | FENCED
--         | REFUSED | BUSY (a quarantine runs) | DRAIN (will take suspects once it holds nothing) | QUARANTINE (takes no clean work)
local n, inc = tonumber(ARGV[2]), ARGV[3]
local epoch, nonce = match(token, '^(%d+):[^:]*:(.*)$')
local delivery = epoch .. '-' .. nonce .. '-' .. ARGV[2]
local work = K .. 'work:' .. inc

local ids, by_lane, flight_keys = {}, {}, {}
for i = 4, #ARGV, 3 do
  local id, z = match(ARGV[i + 1], '^([^:]*):'), by_lane[ARGV[i]]
  if not z then z = {places = {}} by_lane[ARGV[i]] = z end
  local n = #ids + 1
  z[#z + 1], z.places[#z + 1] = ARGV[i + 1], n
  ids[n], flight_keys[n] = id, K .. 'flight:' .. id
end
local members = #ids > 0 and call('HMGET', work, unpack(ids)) or {}

if n <= tonumber(call('HGET', K .. 'leader', 'n')) then
  local out = {'SEEN', delivery}
  for i, id in ipairs(ids) do
    local m = held(members[i])
    if m and m.delivery == delivery then out[#out + 1] = id end
  end
  return out
end
touch()
call('HSET', K .. 'leader', 'n', ARGV[2])

local c = inc_record(inc)
if not c or c[LIFE] ~= 'live' or c[ACCEPTING] ~= '1' or c[DRAINED] == '1' or call('EXISTS', K .. 'void:' .. inc) == 1 then
  return {'REFUSED', delivery}
end

local suspects = by_lane.suspect
local rows = call('HLEN', work)
local function quarantined()
  local holder = match(call('GET', K .. 'quarantine') or '', '^(.*)|')
  local busy = holder and call('HLEN', K .. 'work:' .. holder) > 0
  if suspects then
    for name in pairs(by_lane) do
      if name ~= 'suspect' then return 'REFUSED' end
    end
    if busy then return 'BUSY' end
    call('SET', K .. 'quarantine', inc .. '|' .. int(now))
    if rows > 0 then return 'DRAIN' end
  elseif holder == inc then
    if busy then return 'QUARANTINE' end
    call('DEL', K .. 'quarantine')
  end
end
local refused = quarantined()
if refused then return {refused, delivery} end

local capacity, rect = tonumber(c[CAPACITY]), c[CACHE] == 'rect'
-- What it takes ahead of its rows is never more than these.
local rows_of_engine = tonumber(c[ROWS])
local most_rows = rows_of_engine + math.min(rows_of_engine, tonumber(match(',' .. c[FIGURES], ',ahead=(%d+)') or '0'))
local total, longest = tonumber(call('HGET', K .. 'credit', inc) or '0'), 0
-- Rows that were asked to leave (make_room) cost nothing, and leave before what stands behind them in the stream is taken up.
if rect or rows + #ids > most_rows then
  for _, text in ipairs(call('HVALS', work)) do
    local cost = held(text).cost
    longest = math.max(longest, cost)
    if cost == 0 then rows = rows - 1 end
  end
end
local function fits(cost)
  if rows + 1 > most_rows then return false end
  if rect then return (rows + 1) * math.max(longest, cost) <= capacity end
  return total + cost <= capacity
end

local scores = {}
for name, z in pairs(by_lane) do
  local found = call('ZMSCORE', K .. 'lane:' .. name, unpack(z))
  for j, place in ipairs(z.places) do scores[place] = found[j] end
end
local flights = #ids > 0 and call('MGET', unpack(flight_keys)) or {}
local out, took, costs, sets, entries, leaving, taken, reserved = {'OK', delivery}, {}, {}, {}, {}, {}, {}, 0
local sheddable = {}
local since = '|D|' .. int(now) .. '|'

local function flight(i, id, score)
  if not flights[i] then return 0, handed_over(id, delivery, score) end
  local f = decode(flights[i])
  f[DELIVERY], f[STATE], f[SCORE] = delivery, 'D', score
  return f[ATTEMPTS], table.concat(f, '|'), f[TENANT], f[BYTES]
end

local function take(i, id, score, cost)
  local name, n = ARGV[3 * i + 1], #took + 1
  local class = match(name, '^%l+')
  local before, text, tenant, bytes = flight(i, id, score)
  rows, total, reserved, longest = rows + 1, total + cost, reserved + cost, math.max(longest, cost)
  local z = leaving[name]
  if not z then z = {} leaving[name] = z end
  z[#z + 1] = ARGV[3 * i + 2]
  sets[2 * n - 1], sets[2 * n] = flight_keys[i], text
  costs[n] = int(cost)
  entries[2 * n - 1], entries[2 * n] = id, delivery .. '|' .. costs[n] .. since .. class .. '|' .. before
  took[n], taken[id] = id, true
  if tenant ~= '' and not suspects then count_lane(class, tenant, -1) end
  if is_sheddable(ARGV[3 * i + 2]) then sheddable[#sheddable + 1] = id end
  count_one(tenant, -1, tonumber(bytes), match(ARGV[3 * i + 2], ':(.*)'))
  ev(id, 'dispatch', delivery, inc, score, name, cost)
  return 'TOOK'
end

for i, id in ipairs(ids) do
  local cost = tonumber(ARGV[3 * i + 3])
  local score = not taken[id] and scores[i]
  out[i + 2] = not score and 'GONE' or members[i] and 'HELD' or not fits(cost) and 'FULL' or take(i, id, score, cost)
end
if #took > 0 then
  for name, z in pairs(leaving) do call('ZREM', K .. 'lane:' .. name, unpack(z)) end
  if #sheddable > 0 then call('ZREM', K .. 'sheddable', unpack(sheddable)) end
  call('MSET', unpack(sets))
  call('HSET', work, unpack(entries))
  call('HINCRBY', K .. 'credit', inc, reserved)
  call('XADD', K .. 'stream:' .. inc, '*', 'delivery', delivery, 'ids', table.concat(took, ' '),
    'costs', table.concat(costs, ' '))
  counted()
  emit('dispatch', token)
end
return out
