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
