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
local stamp, args = format('%016.0f', now), ARGV

-- As HEADER, without the fields that nothing here asks for. Most requests of a call are of one kind: their headers differ in
-- nonce, digest, tail and size alone, and that the rest is alike is found letter by letter, in half the time.
local ASKED = '^1|[%w._~-]+|%w+|((%l+)|([%w._~-]*)|(%d+)|(%d+)|)((%d+):(%d+):[xe]%x*s?)|(%d+)(|[%w._~-]*|[01]|[%w._~-]*|)'
local ALIKE = '^1|[%%w._~-]+|%%w+|%s((%%d+):(%%d+):[xe]%%x*s?)|(%%d+)%s'
local function literal(text) return (string.gsub(text, '[.-]', '%%%0')) end
local kind_of = {}
local function kind_by(front, class, tenant, timeout, term, back)
  local kind = kind_of[front .. back]
  if not kind and CLASSES[class] and #tenant <= 128 then
    kind = {class = class, tenant = tenant, lives = tonumber(timeout), term = tonumber(term)}
    kind.alike = format(ALIKE, literal(front), literal(back))
    kind.deadline = kind.lives > 0 and int(now + kind.lives) or '0'
    kind.members, kind.n, kind.bytes, kind.tokens = {}, 0, 0, 0 -- of those that are accepted
    kind_of[front .. back] = kind
  end
  return kind
end

local kinds, tails, tokens, sizes, keys, kind = {}, {}, {}, {}, {}, {alike = '^$'}
local seen, twice, owned, dated, tokens_asked, bytes_asked = {}, false, false, false, 0, 0
for i = 1, n do
  local id, head = args[3 * i + 1], args[3 * i + 2]
  -- What others read out of a lane must be of their form: one bad id or an infinite score would stop the scheduler.
  if not is_name(id) then return redis.error_reply('BADID of request ' .. i) end
  local tail, prompt, most, bytes = match(head, kind.alike)
  if not tail then
    local front, class, tenant, timeout, term, back
    front, class, tenant, timeout, term, tail, prompt, most, bytes, back = match(head, ASKED)
    kind = front and kind_by(front, class, tenant, timeout, term, back)
    if not kind or kind.lives > MAX_AGE or kind.term > MOST_TERM then return redis.error_reply('BADHEADER of ' .. id) end
    owned, dated = owned or tenant ~= '', dated or kind.lives > 0
  end
  local size = tonumber(bytes)
  if size ~= #args[3 * i + 3] or #head > 496 or #tail > 32 then return redis.error_reply('BADHEADER of ' .. id) end
  kinds[i], tails[i], tokens[i], sizes[i] = kind, tail, prompt + most, size
  tokens_asked, bytes_asked = tokens_asked + tokens[i], bytes_asked + size
  keys[2 * i - 1], keys[2 * i] = K .. 'payload:' .. id, K .. 'result:' .. id
  twice = twice or seen[id]
  seen[id] = true
end

local known = call('MGET', K .. 'generation', K .. 'mark', K .. 'skew')
local generation = known[1]
if not generation then
  generation = args[1]
  call('SET', K .. 'generation', generation)
end
-- A clock set back must let nothing overtake: scores never fall below the last one's base.
local base = math.max(now + tonumber(known[3] or '0'), tonumber(known[2] or '0'))
local out, accepted, payloads, sheddable, deadlines, there = {generation}, 0, {}, {}, {}, false

local function next_score(i) return format('%d', base + kinds[i].term + accepted + 1) end

local function accept(i)
  local id, tail, kind, score = args[3 * i + 1], tails[i], kinds[i], next_score(i)
  accepted = accepted + 1
  payloads[2 * accepted - 1], payloads[2 * accepted] = keys[2 * i - 1], stamp .. args[3 * i + 2] .. args[3 * i + 3]
  local at = 2 * kind.n
  kind.members[at + 1], kind.members[at + 2] = score, id .. ':' .. tail
  kind.n, kind.bytes, kind.tokens = kind.n + 1, kind.bytes + sizes[i], kind.tokens + tokens[i]
  if is_sheddable(tail) then
    local m = #sheddable
    sheddable[m + 1], sheddable[m + 2] = score, id
  end
  if kind.lives > 0 then
    local m = #deadlines
    deadlines[m + 1], deadlines[m + 2] = kind.deadline, id
  end
  if EVENTS then ev(id, 'submit', match(args[3 * i + 2], '|([^|]*)'), kind.class, tail, kind.deadline, score) end
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
    local id, digest = args[3 * i + 1], match(args[3 * i + 2], '^1|[^|]*|(%w+)|')
    local before = seen[id] ~= true and seen[id]
    if before then return before == digest and 'SAME' or 'CONFLICT' end
    local _, live = match(call('GETRANGE', keys[2 * i - 1], 0, HEAD - 1), HEADER, STAMP + 1)
    if live then return live == digest and 'SAME' or 'CONFLICT' end
    local done = match(call('GETRANGE', keys[2 * i], 0, HEAD), '^[^|]*|[^|]*|([^|]*)|')
    if done then return done == digest and 'DONE' or 'CONFLICT' end
    local full = foretold and kinds[i].lives > 0 and late(i) or refused(i)
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

if accepted > 0 then
  call('MSET', unpack(payloads))
  if #sheddable > 0 then call('ZADD', K .. 'sheddable', unpack(sheddable)) end
  if #deadlines > 0 then call('ZADD', K .. 'deadlines', unpack(deadlines)) end
  call('SET', K .. 'mark', int(base + accepted))
  for _, kind in pairs(kind_of) do
    if kind.n > 0 then
      call('ZADD', K .. 'lane:' .. lane_of(kind.class, kind.tenant), unpack(kind.members))
      count_lane(kind.class, kind.tenant, kind.n)
      count_waiting(kind.tenant, kind.n, kind.bytes, kind.tokens)
      count('submitted', kind.tenant, kind.n)
    end
  end
  if shed then shed() end
  counted()
  ring()
  emit('submit', '-')
elseif there then
  -- WAIT and WAITAOF wait for what their connection wrote: that the request was there already must count as written too.
  call('PEXPIRE', K .. 'mark', 60000)
  call('PERSIST', K .. 'mark')
end
return out
