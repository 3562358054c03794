-- Room for one more, if need be made among the sheddable that wait, worst first. For submit, whose variables it uses.
local MOST_DISPLACED = 512
local worst, passed, victims = nil, 0, {}

shed = function()
  for _, victim in ipairs(victims) do
    local ms = math.min(victim.ms, 65535)
    -- msgpack: {"retry_after_ms": <16 bits>}
    local body = '\129\174retry_after_ms\205' .. string.char(math.floor(ms / 256), math.floor(ms % 256))
    finish(victim.id, victim.f, 'failed', 'displaced', body, '', false)
  end
  finish_all()
end

-- Give up as many as it takes of those whose scores are worse than the newcomer's; none where that is not enough.
local function make_room(i)
  local score = tonumber(next_score(i))
  worst = worst or call('ZREVRANGE', K .. 'sheddable', 0, MOST_DISPLACED - 1, 'WITHSCORES')
  local chosen, limit, value = {}, over(queue, 1, tokens[i], sizes[i])
  while limit do
    local at = 2 * (passed + #chosen) + 1
    local f = worst[at] and tonumber(worst[at + 1]) > score and record(worst[at])
    if not f then
      for _, victim in ipairs(chosen) do add(queue, 1, victim.tokens, victim.bytes) end
      return false
    end
    local prompt, most = match(f[TAIL], '^(%d+):(%d+)')
    local victim = {id = worst[at], f = f, tokens = prompt + most, bytes = tonumber(f[BYTES])}
    victim.ms = wait_ms(queue, limit, value)
    add(queue, -1, -victim.tokens, -victim.bytes)
    chosen[#chosen + 1] = victim
    limit, value = over(queue, 1, tokens[i], sizes[i])
  end
  passed = passed + #chosen
  for _, victim in ipairs(chosen) do victims[#victims + 1] = victim end
  return true
end

-- The word of a request that finds no room; else it takes its room. A tenant at its own limit displaces nobody.
local function refused(i)
  local own, t_limit, t_value = limits_for(kinds[i].tenant), nil, nil
  if own then t_limit, t_value = over(own, 1, tokens[i], sizes[i]) end
  local limit, value = over(queue, 1, tokens[i], sizes[i])
  local may = not t_limit and string.find(match(ARGV[3], '^[^|]*'), ',' .. i .. ',', 1, true)
  if limit and not (may and make_room(i)) then return full_word(queue, limit, value) end
  if t_limit then return full_word(own, t_limit, t_value) end
  if own then add(own, 1, tokens[i], sizes[i]) end
  add(queue, 1, tokens[i], sizes[i])
end
