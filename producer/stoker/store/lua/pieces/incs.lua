-- The record of an incarnation in the hash `inc`: text fields in a fixed order between `|`.
local WORKER, IDENTITY, CAPACITY, ROWS, BUDGET, MODE, CACHE, LIFE, ACCEPTING, DRAINED = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local PROGRESS, RATE, FAULTS, SUCCESSES, FIGURES, CAUSE, CRASHED = 11, 12, 13, 14, 15, 16, 17
local INC = '^' .. string.rep('([^|]*)|', 16) .. '([^|]*)$'
local function inc_record(inc)
  local text = call('HGET', K .. 'inc', inc)
  return text and {match(text, INC)}
end
local function save_inc(inc, c) call('HSET', K .. 'inc', inc, table.concat(c, '|')) end

-- Everything that belongs to one incarnation and to nobody else.
local function forget_inc(inc)
  call('DEL', K .. 'stream:' .. inc, K .. 'work:' .. inc)
  call('HDEL', K .. 'credit', inc)
  call('ZREM', K .. 'beats', inc)
  call('HDEL', K .. 'inc', inc)
  local quarantine = call('GET', K .. 'quarantine')
  if quarantine and match(quarantine, '^(.*)|') == inc then call('DEL', K .. 'quarantine') end
end
