-- Fixed buckets in `histograms`: field <metric>:<class>:<b> counts times up to 2^(b/2) ms; :sum adds up microseconds.
-- The metric `answer` counts tokens, one as a millisecond.
-- They and the rates are raised once a call.
local cells = {}
local function observe(metric, class, us)
  local ms = us / 1000
  local b = ms <= 1 and 0 or math.min(54, math.ceil(2 * math.log(ms) / math.log(2) - 1e-9))
  local cell, sum = metric .. ':' .. class .. ':' .. b, metric .. ':' .. class .. ':sum'
  cells[cell] = (cells[cell] or 0) + 1
  cells[sum] = (cells[sum] or 0) + us
end
local function observed()
  for cell, n in pairs(cells) do call('HINCRBY', K .. 'histograms', cell, int(n)) end
  cells = {}
end

-- The drain rate, in requests a second, over windows of at least RATE_WINDOW: what `retry_after` is made from.
local function drain(n)
  local r = call('HMGET', K .. 'rates', 'since', 'settled')
  local since, settled = tonumber(r[1] or nil), tonumber(r[2] or '0')
  if not since or now < since then
    call('HSET', K .. 'rates', 'since', int(now), 'settled', n)
  elseif now - since >= RATE_WINDOW then
    call('HSET', K .. 'rates', 'since', int(now), 'settled', n, 'drain', string.format('%.3f', settled * 1e6 / (now - since)))
  else
    call('HINCRBY', K .. 'rates', 'settled', n)
  end
end
