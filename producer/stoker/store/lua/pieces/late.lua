-- The word of a request that would not be finished by its deadline: its turn comes behind all that waits with a better
-- score, taken to be of the mean size of what waits, and then it takes its own time. For submit, whose variables it uses.
local function late(i)
  if string.find(match(ARGV[3], '|(.*)$') or '', ',' .. i .. ',', 1, true) then return nil end
  local score = int(math.max(now + tonumber(known[3] or '0'), tonumber(known[2] or '0')) + terms[i] + #accepted + 1)
  local ahead = #accepted
  for name in pairs(LANES) do
    ahead = ahead + call('ZCOUNT', K .. 'lane:' .. name, '-inf', score)
  end
  local size = queue.waiting > 0 and queue.waiting_tokens / queue.waiting or 0
  local prompt, most = match(tails[i], '^(%d+):(%d+)')
  local us = ahead * size * 1e6 / foretold[1] + foretold[2] + foretold[3] * prompt + foretold[4] * most
  if us > lives[i] then return 'LATE:' .. int(math.floor(lives[i] / 1000)) .. ':' .. int(math.ceil(us / 1000)) end
end
