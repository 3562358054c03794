-- Running totals in `counts`, raised once a call: waiting, waiting_bytes, submitted, one per outcome; per tenant too.
local deltas = {}
local function count(field, tenant, n)
  deltas[field] = (deltas[field] or 0) + n
  if tenant ~= '' then
    local own = field .. ':' .. tenant
    deltas[own] = (deltas[own] or 0) + n
  end
end
local function count_waiting(tenant, n, bytes)
  count('waiting', tenant, n)
  count('waiting_bytes', tenant, n * bytes)
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
