-- Compare with the last tick of any scheduler: after a stall, a clock step or a time without schedulers nothing may
-- lapse by time for T, because the workers' beats of that time are not there. Returns whether such a grace runs.
local function gap()
  touch()
  local stamps = call('MGET', K .. 'tick', K .. 'grace')
  local tick, grace = tonumber(stamps[1] or nil), tonumber(stamps[2] or '0')
  if not tick or now < tick or now - tick > H then
    grace = now + T
    call('SET', K .. 'grace', int(grace))
    ev('-', 'grace', tick and int(now - tick) or 'none')
    if tick and now < tick then call('INCRBY', K .. 'skew', int(tick - now)) end
  end
  call('SET', K .. 'tick', int(now))
  return now < grace and grace <= now + T
end
