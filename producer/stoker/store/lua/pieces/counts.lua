-- Running totals in `counts`, raised once a call: waiting, waiting_bytes, waiting_tokens, kept_bytes, submitted, one per
-- outcome; per tenant too.
local deltas = {}
local function count(field, tenant, n)
  deltas[field] = (deltas[field] or 0) + n
  if tenant ~= '' then
    local own = field .. ':' .. tenant
    deltas[own] = (deltas[own] or 0) + n
  end
end
-- Of n requests that begin (or with n < 0 cease) to wait, their bytes and tokens in all.
local function count_waiting(tenant, n, bytes, tokens)
  count('waiting', tenant, n)
  count('waiting_bytes', tenant, bytes)
  count('waiting_tokens', tenant, tokens)
end
-- One that begins (n = 1) or ceases (n = -1) to wait, by the bytes and tail of its record.
local function count_one(tenant, n, bytes, tail)
  local prompt, most = match(tail, '^(%d+):(%d+)')
  count_waiting(tenant, n, n * bytes, n * (prompt + most))
end
local function something_waits()
  return tonumber(call('HGET', K .. 'counts', 'waiting') or '0') + (deltas.waiting or 0) > 0
end

-- How many wait in each lane of a tenant, in `active`: <class>:<tenant>, and as <class> in all of them. A lane that holds
-- none has no field, so that these are the tenants that share a class now. Requests without a tenant cost nothing here.
local shares = {}
local function count_lane(class, tenant, n)
  if tenant == '' then return end
  local own = class .. ':' .. tenant
  shares[class], shares[own] = (shares[class] or 0) + n, (shares[own] or 0) + n
end

local function counted()
  for field, n in pairs(deltas) do
    if n ~= 0 and call('HINCRBY', K .. 'counts', field, n) == 0 then call('HDEL', K .. 'counts', field) end
  end
  for field, n in pairs(shares) do
    if n ~= 0 and call('HINCRBY', K .. 'active', field, n) == 0 then call('HDEL', K .. 'active', field) end
  end
  deltas, shares = {}, {}
end
