-- Names that every script uses. KEYS[1] is the queue's prefix `stoker:{<queue>}:`; all keys of a queue begin with it.
local K, call = KEYS[1], redis.call
local match, format = string.match, string.format

-- Above 1e14 Lua's own conversion loses digits, so microseconds go into strings by this alone. A whole number takes a tenth
-- of the time that '%.0f' takes.
local function int(x) return format(x % 1 == 0 and '%d' or '%.0f', x) end

-- A DEL of a never-set key as the first write: Redis refuses a growing first write when it is out of memory,
-- and what drains the queue must pass.
local function touch() call('DEL', K .. 'never') end

-- Wake the scheduler when it sleeps: a list of at most one element.
local function ring()
  if call('LLEN', K .. 'bell') == 0 then
    call('RPUSH', K .. 'bell', '1')
    call('PEXPIRE', K .. 'bell', 60000)
  end
end
