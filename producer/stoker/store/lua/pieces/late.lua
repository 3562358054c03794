-- The lanes of tenants, by class; of very many some, by chance.
local MOST_LANES = 64
local by_class
local function lanes_of_tenants()
  if by_class then return by_class end
  by_class = {}
  local names = call('HLEN', K .. 'active') > 0 and call('HRANDFIELD', K .. 'active', MOST_LANES) or {}
  for _, name in ipairs(names) do
    local class = match(name, '^(%l+):')
    if class then
      local lanes = by_class[class] or {}
      lanes[#lanes + 1], by_class[class] = name, lanes
    end
  end
  return by_class
end

-- The word of a request that would not be finished by its deadline: its turn comes behind all that waits with a better
-- score, taken to be of the mean size of what waits, and then it takes its own time. For submit, whose variables it uses.
local function late(i)
  if string.find(match(ARGV[3], '|(.*)$') or '', ',' .. i .. ',', 1, true) then return nil end
  local kind, score, ahead = kinds[i], next_score(i), accepted
  for name in pairs(LANES) do
    ahead = ahead + call('ZCOUNT', K .. 'lane:' .. name, '-inf', score)
  end
  for class, tenants_of in pairs(lanes_of_tenants()) do
    local all, own = 0, 0
    for _, name in ipairs(tenants_of) do
      local before = call('ZCOUNT', K .. 'lane:' .. name, '-inf', score)
      all = all + before
      if name == class .. ':' .. kind.tenant then own = before end
    end
    -- The tenants of its own class take turns: none but its own requests can go before it more often than it does.
    if class == kind.class then all = math.min(all, (own + 1) * #tenants_of) end
    ahead = ahead + all
  end
  local size = queue.waiting > 0 and queue.waiting_tokens / queue.waiting or 0
  local prompt, most = match(tails[i], '^(%d+):(%d+)')
  local us = ahead * size * 1e6 / foretold[1] + foretold[2] + foretold[3] * prompt + foretold[4] * most
  if us > kind.lives then return 'LATE:' .. int(math.floor(kind.lives / 1000)) .. ':' .. int(math.ceil(us / 1000)) end
end
