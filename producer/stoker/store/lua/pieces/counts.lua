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
local function counted()
  for field, n in pairs(deltas) do
    if n ~= 0 and call('HINCRBY', K .. 'counts', field, n) == 0 then call('HDEL', K .. 'counts', field) end
  end
  deltas = {}
end
