-- use: events counts flight names
-- Accept up to 512 requests. The id is the client's: the same id with the same digest is the same request until its result
-- expires, and the check for it comes before any limit. Rings the scheduler.
-- A request that may displace, and finds the queue full, takes the places of the worst sheddable ones that wait with worse
-- scores: these are FAILED, no dead letters, and their results say when there may be room.
-- KEYS[1] prefix
-- ARGV    random (becomes the generation of an empty Redis), most bytes that may wait, which requests may displace others
--         and, behind a |, which do not have their deadlines checked (numbers between commas, also around; or empty), then per request: id (a name of at
--         most 128 characters), header (see flight.lua; at most 496 bytes), body (msgpack)
-- Returns generation, then a word per request: ACCEPTED, SAME (live), DONE (has its result), CONFLICT (other digest),
--         FULL:<milliseconds until there may be room, by the measured drain rate>:<limit's name>:<limit>:<what it would be
--         with this request>:<1: workers are alive, 0: none is>, LATE:<its timeout>:<milliseconds that it would take>
-- A tenant's limits are fields of `tenants`, <tenant>:max_waiting, :max_tokens and :max_bytes, else those that all have.
-- Its first write grows, so that Redis refuses it when out of memory: a full server takes nothing new.
local n, most_bytes = (#ARGV - 3) / 3, tonumber(ARGV[2])
if not most_bytes or n < 1 or n > 512 or n % 1 ~= 0 then return redis.error_reply('BADCALL: the number of arguments') end
local counts = call('HMGET', K .. 'counts', 'waiting', 'waiting_bytes')
local waiting, waiting_bytes = tonumber(counts[1] or '0'), tonumber(counts[2] or '0')
local MOST_TERM = 1e15 -- 30 years: with it, scores still are exact
local stamp = string.format('%016.0f', now)

-- As HEADER, without the fields that nothing here asks for.
local ASKED = '^1|[%w._~-]+|(%w+)|(%l+)|([%w._~-]*)|(%d+)|(%d+)|((%d+):(%d+):[xe]%x*s?)|(%d+)|[%w._~-]*|[01]|[%w._~-]*|'
local digests, classes, tenants, lives, terms, tails, tokens, sizes = {}, {}, {}, {}, {}, {}, {}, {}
local keys, seen, twice, owned, dated, tokens_asked, bytes_asked = {}, {}, false, false, false, 0, 0
for i = 1, n do
  local id, head = ARGV[3 * i + 1], ARGV[3 * i + 2]
  local digest, class, tenant, timeout, term, tail, prompt, most, bytes = match(head, ASKED)
  -- What others read out of a lane must be of their form: one bad id or an infinite score would stop the scheduler.
  if not is_name(id) then return redis.error_reply('BADID of request ' .. i) end
  if not digest or #head > 496 or not CLASSES[class] or #tenant > 128 or #tail > 32 then
    return redis.error_reply('BADHEADER of ' .. id)
  end
  digests[i], classes[i], tenants[i], tails[i] = digest, class, tenant, tail
  lives[i], terms[i], tokens[i], sizes[i] = tonumber(timeout), tonumber(term), prompt + most, tonumber(bytes)
  if sizes[i] ~= #ARGV[3 * i + 3] or lives[i] > MAX_AGE or terms[i] > MOST_TERM then
    return redis.error_reply('BADHEADER of ' .. id)
  end
  tokens_asked, bytes_asked, owned = tokens_asked + tokens[i], bytes_asked + sizes[i], owned or tenant ~= ''
  dated = dated or lives[i] > 0
  keys[2 * i - 1], keys[2 * i] = K .. 'payload:' .. id, K .. 'result:' .. id
  twice = twice or seen[id]
  seen[id] = true
end

local known = call('MGET', K .. 'generation', K .. 'mark', K .. 'skew')
local generation = known[1]
if not generation then
  generation = ARGV[1]
  call('SET', K .. 'generation', generation)
end
local out, payloads, accepted, there = {generation}, {}, {}, false

local function accept(i)
  local at = #accepted + 1
  payloads[2 * at - 1], payloads[2 * at] = keys[2 * i - 1], stamp .. ARGV[3 * i + 2] .. ARGV[3 * i + 3]
  accepted[at] = i
  out[i + 1] = 'ACCEPTED'
end

-- What a full fleet does, while a leader foretells it: tokens a second, and the microseconds of any request, of a token of
-- its prompt, and of one of its max_tokens.
local foretold
if dated then
  local told = call('HMGET', K .. 'leader', 'forecast', 'until')
  if told[1] and now < tonumber(told[2]) then foretold = {match(told[1], '^([%d.]+)|([%d.]+)|([%d.]+)|([%d.]+)$')} end
end
if owned and not (TENANT_WAITING or TENANT_TOKENS or TENANT_BYTES) then owned = call('EXISTS', K .. 'tenants') == 1 end

local shed
local new = not twice and call('EXISTS', unpack(keys)) == 0
if new and not owned and not foretold and not MAX_TOKENS and not MAX_STORED and waiting + n <= MAX_WAITING
  and waiting_bytes + bytes_asked <= most_bytes then
  for i = 1, n do accept(i) end
else
  -- Everything that the plain call need not even define.
  -- include: finish
  -- include: limits
  -- include: displace
  -- include: late

  local function examine(i)
    local id, digest = ARGV[3 * i + 1], digests[i]
    local before = seen[id] ~= true and seen[id]
    if before then return before == digest and 'SAME' or 'CONFLICT' end
    local _, live = match(call('GETRANGE', keys[2 * i - 1], 0, HEAD - 1), HEADER, STAMP + 1)
    if live then return live == digest and 'SAME' or 'CONFLICT' end
    local done = match(call('GETRANGE', keys[2 * i], 0, HEAD), '^[^|]*|[^|]*|([^|]*)|')
    if done then return done == digest and 'DONE' or 'CONFLICT' end
    local full = foretold and lives[i] > 0 and late(i) or refused(i)
    if full then return full end
    seen[id] = digest
    accept(i)
    return 'ACCEPTED'
  end

  local all = new and not foretold and fits_all()
  for i = 1, n do
    if all then accept(i) else out[i + 1] = examine(i) end
    there = there or out[i + 1] == 'SAME' or out[i + 1] == 'DONE'
  end
end

if #accepted > 0 then
  call('MSET', unpack(payloads))
  -- A clock set back must let nothing overtake: scores never fall below the last one's base.
  local t = math.max(now + tonumber(known[3] or '0'), tonumber(known[2] or '0'))
  local lanes, deadlines, sums = {}, {}, {}
  for at, i in ipairs(accepted) do
    local id, class, tenant = ARGV[3 * i + 1], classes[i], tenants[i]
    local name = tenant == '' and class or lane_of(class, tenant)
    local z, score = lanes[name], int(t + terms[i] + at)
    if is_sheddable(tails[i]) then call('ZADD', K .. 'sheddable', score, id) end
    if not z then z = {} lanes[name] = z end
    local m = #z
    z[m + 1], z[m + 2] = score, id .. ':' .. tails[i]
    local deadline = lives[i] > 0 and int(now + lives[i]) or '0'
    if lives[i] > 0 then
      local d = #deadlines
      deadlines[d + 1], deadlines[d + 2] = deadline, id
    end
    if tenant ~= '' then count_lane(class, tenant, 1) end
    local sum = sums[tenant]
    if not sum then sum = {0, 0, 0} sums[tenant] = sum end
    sum[1], sum[2], sum[3] = sum[1] + 1, sum[2] + sizes[i], sum[3] + tokens[i]
    if EVENTS then ev(id, 'submit', match(ARGV[3 * i + 2], '|([^|]*)'), class, tails[i], deadline, score) end
  end
  for name, z in pairs(lanes) do call('ZADD', K .. 'lane:' .. name, unpack(z)) end
  if #deadlines > 0 then call('ZADD', K .. 'deadlines', unpack(deadlines)) end
  call('SET', K .. 'mark', int(t + #accepted))
  if shed then shed() end
  for tenant, sum in pairs(sums) do
    count_waiting(tenant, sum[1], sum[2], sum[3])
    count('submitted', tenant, sum[1])
  end
  counted()
  ring()
  emit('submit', '-')
elseif there then
  -- WAIT and WAITAOF wait for what their connection wrote: that the request was there already must count as written too.
  call('PEXPIRE', K .. 'mark', 60000)
  call('PERSIST', K .. 'mark')
end
return out
