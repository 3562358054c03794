-- use: events counts flight drops finish histograms
-- Report how attempts ended. Success from any attempt wins once (of a streamed request only while no later attempt began:
-- readers saw its tokens); a failure counts from the current attempt only. Frees the member and its credit either way.
-- KEYS[1] prefix
-- ARGV    inc, jitter (0 to 1, of the back-off), then per request: id, delivery, nonce, outcome, reason (a word), figures, body
--         outcome: ok | bad (the request's own fault: FAILED, no dead letter) | failure (charged, FAILED) | retry (charged, DELAYED
--         until max_attempts)
--         figures: attempt:first token in us after begin (-1: none):prompt tokens:generated tokens:bytes of text (0: was tokens)
-- Returns a word per request: OK, DUPLICATE (no such life), STALE (fenced off): all three mean "drop it"
local inc, jitter = ARGV[1], tonumber(ARGV[2])
local OUTCOMES = {ok = true, bad = true, failure = true, retry = true}
local FIGURES = '^(%d+):(-?%d+):(%d+):(%d+):(%d+)$'
if #ARGV < 9 or (#ARGV - 2) % 7 ~= 0 or not jitter or not (jitter >= 0 and jitter <= 1) then
  return redis.error_reply('BADCALL: the number of arguments, or the jitter')
end
local ids, flight_keys, figures = {}, {}, {}
for i = 3, #ARGV, 7 do
  local outcome, reason, n = ARGV[i + 3], ARGV[i + 4], #ids + 1
  local attempt, first, prompt, generated, bytes = match(ARGV[i + 5], FIGURES)
  if not OUTCOMES[outcome] or reason ~= '' and not match(reason, '^[%w_]+$') or #reason > 64 or not attempt
    or math.max(#attempt, #first, #prompt, #generated, #bytes) > 15 then
    return redis.error_reply('BADOUTCOME of ' .. ARGV[i])
  end
  ids[n], flight_keys[n] = ARGV[i], K .. 'flight:' .. ARGV[i]
  figures[n] = {attempt + 0, first + 0, prompt + 0, generated + 0, bytes + 0} -- half of what `tonumber` takes
end
touch()
local members, flights = call('HMGET', K .. 'work:' .. inc, unpack(ids)), call('MGET', unpack(flight_keys))
local out, done, settled, text_bytes, text_tokens = {}, {}, 0, 0, 0

-- What results take until they lapse, by the slice of time in which they were written: `expire` takes it off again.
local results = {}
local function keep(tenant, bytes)
  if bytes > 0 then
    results[tenant] = (results[tenant] or 0) + bytes
    count('kept_bytes', tenant, bytes)
  end
end
local function kept()
  if not next(results) then return end
  local slice = math.floor(now / RESULT_SLICE)
  for tenant, bytes in pairs(results) do call('HINCRBY', K .. 'kept:' .. int(slice), tenant, bytes) end
  call('ZADD', K .. 'kept', int((slice + 1) * RESULT_SLICE + RESULT_TTL * 1000), int(slice))
end

-- How long the last answers of tenants became: a list that is cut at its old end, so that however many tenants there are
-- it stays as it is, and those whose answers are many have most of it.
local prompts, answers, lengths = 0, 0, {}
local function remembered()
  if not lengths[1] then return end
  local key = K .. 'answers'
  if call('RPUSH', key, unpack(lengths)) > MOST_ANSWERS then call('LTRIM', key, -MOST_ANSWERS, -1) end
end

local function measure(f, figures)
  local first, prompt, generated, bytes = figures[2], figures[3], figures[4], figures[5]
  local accepted, class = f[ACCEPTED] + 0, f[CLASS]
  if f[BEGUN] ~= '' then
    local begun = f[BEGUN] + 0
    local waited = begun > accepted and begun - accepted or 0
    observe('queue', class, waited)
    if first >= 0 then observe('ttft', class, waited + first) end
  end
  observe('e2e', class, now > accepted and now - accepted or 0)
  if generated > 0 then
    observe('answer', class, 1000 * generated)
    if f[TENANT] ~= '' then lengths[#lengths + 1] = lane_of(class, f[TENANT]) .. ':' .. int(generated) end
  end
  prompts, answers = prompts + prompt, answers + generated
  if bytes > 0 then text_bytes, text_tokens = text_bytes + bytes, text_tokens + prompt end
end

local function fail(id, f, outcome, reason, body)
  f[FAILURES] = int(tonumber(f[FAILURES]) + 1)
  ended(f, inc, reason)
  ev(id, 'failure', f[DELIVERY], f[FAILURES])
  if outcome == 'failure' or tonumber(f[FAILURES]) >= MAX_ATTEMPTS then
    keep(f[TENANT], #body)
    finish(id, f, 'failed', reason, body, inc, true)
    settled = settled + 1
    return
  end
  local cap = math.min(BACKOFF_MAX, BACKOFF_MIN * 2 ^ (tonumber(f[FAILURES]) - 1))
  f[DELIVERY], f[STATE] = '', 'Y'
  save(id, f)
  call('ZADD', K .. 'delayed', int(now + cap * jitter), id)
  count_one(f[TENANT], 1, tonumber(f[BYTES]), f[TAIL])
  count('retries', '', 1)
  ev(id, 'delay', int(now + cap * jitter))
end

local function judge(id, f, figures, a)
  local delivery, nonce, outcome, reason, body = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 6]
  if not f or f[NONCE] ~= nonce then return 'DUPLICATE' end
  local current = f[DELIVERY] == delivery
  if outcome == 'ok' then
    if not current and f[STREAM] == '1' and figures[1] < tonumber(f[ATTEMPTS]) then return 'STALE' end
    measure(f, figures)
    keep(f[TENANT], #body)
    finish(id, f, 'succeeded', reason, body, inc, false)
    settled = settled + 1
  elseif not current then
    return 'STALE'
  elseif outcome == 'bad' then
    ended(f, inc, reason)
    keep(f[TENANT], #body)
    finish(id, f, 'failed', reason, body, inc, false)
    settled = settled + 1
  else
    fail(id, f, outcome, reason, body)
  end
  return 'OK'
end

for i, id in ipairs(ids) do
  local a = 7 * i - 4
  if members[i] then
    local delivery, cost = match(members[i], '^([^|]*)|(%d+)|')
    if delivery == ARGV[a + 1] then drop(id, cost) end
  end
  out[i] = done[id] and 'DUPLICATE' or judge(id, flights[i] and decode(flights[i]), figures[i], a)
  if out[i] == 'OK' then done[id] = true else count('fenced', '', 1) end
end
drop_all(inc)
finish_all()
count('prompt_tokens', '', prompts)
count('generation_tokens', '', answers)
kept()
counted()
observed()
remembered()
if settled > 0 then drain(settled) end
if text_bytes > 0 then
  call('HINCRBY', K .. 'rates', 'text_bytes', text_bytes)
  call('HINCRBY', K .. 'rates', 'text_tokens', text_tokens)
end
emit('settle', inc)
return out
