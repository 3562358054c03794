-- Fixed buckets in `histograms`: field <metric>:<class>:<b> counts times up to 2^(b/2) ms; :sum adds up microseconds.
-- The metric `answer` counts tokens, one as a millisecond.
-- They and the rates are raised once a call.
local cells, log, ceil, HALVES = {}, math.log, math.ceil, 2 / math.log(2)
local function observe(metric, class, us)
  local of_metric = cells[metric]
  if not of_metric then of_metric = {} cells[metric] = of_metric end
  local of = of_metric[class]
  if not of then of = {sum = 0} of_metric[class] = of end
  local b = us <= 1000 and 0 or ceil(HALVES * log(us / 1000) - 1e-9)
  if b > 54 then b = 54 end
  of[b], of.sum = (of[b] or 0) + 1, of.sum + us
end
local function observed()
  for metric, of_metric in pairs(cells) do
    for class, of in pairs(of_metric) do
      for b, n in pairs(of) do call('HINCRBY', K .. 'histograms', metric .. ':' .. class .. ':' .. b, int(n)) end
    end
  end
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
