-- Compare with the last tick of any scheduler: after a stall, a clock step or a time without schedulers nothing may
-- lapse by time for T, because the workers' beats of that time are not there. Returns whether such a grace runs.
local function gap()
  touch()
  local tick = tonumber(call('GET', K .. 'tick') or nil)
  if not tick or now < tick or now - tick > H then
    call('SET', K .. 'grace', int(now + T))
    ev('-', 'grace', tick and int(now - tick) or 'none')
    if tick and now < tick then call('INCRBY', K .. 'skew', int(tick - now)) end
  end
  call('SET', K .. 'tick', int(now))
  local grace = tonumber(call('GET', K .. 'grace') or '0')
  return now < grace and grace <= now + T
end
