-- Whether the queue, and the tenant of a request, have room for it. Made for submit, whose variables it uses.
-- A limit: its name, itself, what counts against it now, which size of a request adds to that (1 itself, 2 tokens, 3 bytes).
local NAME, MOST, HAS, OF = 1, 2, 3, 4

local function limits_of(name, of, requests, tokens, bytes, stored)
  local has = call('HMGET', K .. 'counts', 'waiting' .. of, 'waiting_tokens' .. of, 'waiting_bytes' .. of, 'kept_bytes' .. of)
  for i = 1, 4 do has[i] = tonumber(has[i] or '0') end
  local found = {waiting = has[1], waiting_tokens = has[2], n = 0, tokens = 0, bytes = 0}
  if requests then found[#found + 1] = {name .. 'max_waiting', requests, has[1], 1} end
  if bytes then found[#found + 1] = {name .. 'max_waiting_bytes', bytes, has[3], 3} end
  if tokens then found[#found + 1] = {name .. (of == '' and 'max_waiting_tokens' or 'max_tokens'), tokens, has[2], 2} end
  if stored then
    found[#found + 1] = {name .. (of == '' and 'max_stored_bytes' or 'max_bytes'), stored, has[3] + has[4], 3, true}
  end
  return found
end
local queue = limits_of('', '', MAX_WAITING, MAX_TOKENS, most_bytes, MAX_STORED)

-- What a tenant may have: its own settings, else those of every tenant; nothing where there is no limit.
local of_tenants = {}
local function limits_for(tenant)
  if tenant == '' then return nil end
  local found = of_tenants[tenant]
  if found == nil then
    local own = call('HMGET', K .. 'tenants', tenant .. ':max_waiting', tenant .. ':max_tokens', tenant .. ':max_bytes')
    local requests, tokens = tonumber(own[1] or TENANT_WAITING), tonumber(own[2] or TENANT_TOKENS)
    local stored = tonumber(own[3] or TENANT_BYTES)
    found = (requests or tokens or stored) and limits_of('tenant_', ':' .. tenant, requests, tokens, nil, stored) or false
    of_tenants[tenant] = found
  end
  return found
end

-- The limit that does not allow so much more, and what it would come to.
local function over(limits, requests, tokens, bytes)
  for i = 1, #limits do
    local limit = limits[i]
    local value = limit[HAS] + (limit[OF] == 1 and requests or limit[OF] == 2 and tokens or bytes)
    if value > limit[MOST] then return limit, value end
  end
end
local function add(limits, requests, tokens, bytes)
  for i = 1, #limits do
    local limit = limits[i]
    limit[HAS] = limit[HAS] + (limit[OF] == 1 and requests or limit[OF] == 2 and tokens or bytes)
  end
  limits.waiting, limits.waiting_tokens = limits.waiting + requests, limits.waiting_tokens + tokens
end

-- Whether there is room for all of the call together.
local function fits_all()
  if over(queue, n, tokens_asked, bytes_asked) then return false end
  for i = 1, owned and n or 0 do
    local limits = limits_for(kinds[i].tenant)
    if limits then
      limits.n, limits.tokens, limits.bytes = limits.n + 1, limits.tokens + tokens[i], limits.bytes + sizes[i]
      if over(limits, limits.n, limits.tokens, limits.bytes) then return false end
    end
  end
  return true
end

-- Room comes as requests drain: of a tenant's by its share of what waits. What results take comes free as they lapse.
local function wait_ms(limits, limit, value)
  if limit[5] then return math.min(RESULT_TTL, 60000) end
  local r = call('HMGET', K .. 'rates', 'since', 'settled', 'drain')
  local age = math.max(now - tonumber(r[1] or int(now)), 1)
  local rate = tonumber(r[3] or '0')
  if age > RATE_WINDOW or rate == 0 then rate = tonumber(r[2] or '0') * 1e6 / math.max(age, 1e6) end
  if limits.waiting < queue.waiting then rate = rate * limits.waiting / queue.waiting end
  local requests = value - limit[MOST]
  if limit[OF] ~= 1 and limit[HAS] > 0 then requests = requests * limits.waiting / limit[HAS] end
  return rate > 0 and math.min(math.max(1000 * requests / rate, 50), 60000) or 1000
end

local function full_word(limits, limit, value)
  local alive = call('ZCOUNT', K .. 'beats', int(now - T), '+inf') > 0
  return table.concat({'FULL', int(wait_ms(limits, limit, value)), limit[NAME], int(limit[MOST]), int(value),
    alive and '1' or '0'}, ':')
end
