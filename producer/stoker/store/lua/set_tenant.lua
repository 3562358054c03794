-- Change what is set for one tenant: `tenants` maps <tenant>:<setting> -> number.
-- KEYS[1] prefix
-- ARGV    tenant, then per setting: its name, its number (empty: no longer set)
-- Returns OK | FULL (so many are set for all tenants together that no more are kept)
local tenant, sets, gone, new = ARGV[1], {}, {}, 0
if not match(tenant, '^[%w._~-]+$') or #tenant > 128 or #ARGV < 3 or #ARGV > 65 or #ARGV % 2 ~= 1 then
  return redis.error_reply('BADCALL: a tenant, and the names and numbers of its settings')
end
for i = 2, #ARGV, 2 do
  local name, number = ARGV[i], ARGV[i + 1]
  if not match(name, '^[%l_]+$') or #name > 32 or #number > 24 or number ~= '' and not match(number, '^%d+%.?%d*$') then
    return redis.error_reply('BADCALL: setting ' .. (i / 2) .. ' of ' .. tenant)
  end
  local field = tenant .. ':' .. name
  if number == '' then
    gone[#gone + 1] = field
  else
    sets[#sets + 1], sets[#sets + 2] = field, number
    if call('HEXISTS', K .. 'tenants', field) == 0 then new = new + 1 end
  end
end
if new > 0 and call('HLEN', K .. 'tenants') + new > MAX_TENANT_SETTINGS then return {'FULL'} end
touch()
if #gone > 0 then call('HDEL', K .. 'tenants', unpack(gone)) end
if #sets > 0 then call('HSET', K .. 'tenants', unpack(sets)) end
ring()
return {'OK'}
