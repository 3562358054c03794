-- What an incarnation holds: work:<inc> maps id -> delivery|cost|state|since|class|before. State D: handed over, R: running.
-- Class: its own, or suspect. Before: how often it was begun under earlier deliveries. Cost 0: asked to leave (make_room).
local MEMBER = '^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$'
local function held(text)
  if not text then return nil end
  local delivery, cost, state, since, class, before = match(text, MEMBER)
  return {delivery = delivery, cost = tonumber(cost), state = state, since = tonumber(since), class = class,
    before = tonumber(before)}
end
local function held_text(m)
  return m.delivery .. '|' .. int(m.cost) .. '|' .. m.state .. '|' .. int(m.since) .. '|' .. m.class .. '|' .. int(m.before)
end

-- Members are dropped, and the credit lowered by their costs, in one HDEL and one HINCRBY a call; each counts once.
local dropped, freed = {}, 0
local function drop(id, cost)
  if dropped[id] then return end
  dropped[id] = true
  dropped[#dropped + 1] = id
  freed = freed + cost
end
local function drop_all(inc)
  if #dropped > 0 then
    call('HDEL', K .. 'work:' .. inc, unpack(dropped))
    call('HINCRBY', K .. 'credit', inc, 0 - freed) -- -0 would be no number
    ring()
  end
  dropped, freed = {}, 0
end
