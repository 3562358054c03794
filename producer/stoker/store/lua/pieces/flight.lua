-- The client's header and the flight record: text fields in a fixed order between `|`.
-- payload:<id> = <acceptance time, 16 digits> 1|nonce|digest|class|tenant|timeout|term|tail|bytes|reply|stream|link| msgpack
-- tail = <prompt tokens>:<max_tokens>:<x or e>, behind it 8 hex digits where the request has an affinity key, and an s where it may be displaced;
-- timeout and term in microseconds; link: the id that this one retries.
local HEADER = '^1|([%w._~-]+)|(%w+)|(%l+)|([%w._~-]*)|(%d+)|(%d+)|(%d+:%d+:[xe]%x*s?)|(%d+)|([%w._~-]*)|([01])|([%w._~-]*)|'
local STAMP = 16
local HEAD = STAMP + 496
-- As text: Lua makes a text of a number, for every command that it is given to, in ten times the time of its own `format`.
local FIRST, LAST = '0', int(HEAD - 1)

local DELIVERY, STATE, SCORE, ATTEMPTS, FAILURES, LOSSES, GROUP, SOLO, BEGUN, HISTORY = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local NONCE, DIGEST, CLASS, TENANT, TAIL, BYTES, REPLY, STREAM, ACCEPTED, DEADLINE = 11, 12, 13, 14, 15, 16, 17, 18, 19, 20
local FLIGHT = '^' .. string.rep('([^|]*)|', 19) .. '([^|]*)$'

local function decode(text) return {match(text, FLIGHT)} end

-- The record of a request that was never dispatched, from the head of its payload.
local function fresh(id)
  local head = call('GETRANGE', K .. 'payload:' .. id, FIRST, LAST)
  local nonce, digest, class, tenant, timeout, _, tail, bytes, reply, stream = match(head, HEADER, STAMP + 1)
  if not nonce then return nil end
  local accepted, lives = string.sub(head, 1, STAMP), tonumber(timeout)
  local deadline = lives > 0 and int(tonumber(accepted) + lives) or '0'
  return {'', 'Q', '', 0, 0, 0, '', 0, '', '', nonce, digest, class, tenant, tail, bytes, reply, stream, accepted, deadline}
end

-- The same as text, of a request that is handed over for the first time, with its tenant and bytes: of the head only what
-- the record needs is taken apart.
local RUNS = '^(' .. string.rep('.', STAMP) .. ')1|([^|]*|[^|]*|[^|]*|([^|]*))|(%d+)|%d+|([^|]*|(%d+)|[^|]*|[^|]*)|'
local function handed_over(id, delivery, score)
  local head = call('GETRANGE', K .. 'payload:' .. id, FIRST, LAST)
  local accepted, client, tenant, timeout, request, bytes = match(head, RUNS)
  local deadline = timeout == '0' and '0' or int(tonumber(accepted) + tonumber(timeout))
  return delivery .. '|D|' .. score .. '|0|0|0||0|||' .. client .. '|' .. request .. '|' .. accepted .. '|' .. deadline, tenant, bytes
end

local function record(id)
  local text = call('GET', K .. 'flight:' .. id)
  if text then return decode(text) end
  return fresh(id)
end

local function save(id, f) call('SET', K .. 'flight:' .. id, table.concat(f, '|')) end
local function lane_of(class, tenant) return tenant == '' and class or class .. ':' .. tenant end
local function lane(f) return K .. 'lane:' .. (f[GROUP] ~= '' and 'suspect' or lane_of(f[CLASS], f[TENANT])) end
local function member(id, f) return id .. ':' .. f[TAIL] end
-- Whether it may be displaced, by its tail or member: then its id stands in `sheddable` while it is in a lane.
local function is_sheddable(tail) return string.byte(tail, -1) == 115 end

-- Note how an attempt ended; the last 8 are kept.
local function ended(f, inc, cause)
  local all = f[HISTORY] .. (f[HISTORY] ~= '' and ';' or '') .. inc .. ',' .. cause
  local _, n = string.gsub(all, ';', ';')
  if n >= 8 then all = match(all, ';(.*)$') end
  f[HISTORY] = all
end
