-- What an incarnation holds: work:<inc> maps id -> delivery|cost|state|since|suspect. State D: handed over, R: running.
-- Suspect: 1, or 0, or 2 for clean requests of class batch. Cost 0: it was asked to leave (make_room).
local MEMBER = '^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$'
local function held(text)
  if not text then return nil end
  local delivery, cost, state, since, suspect = match(text, MEMBER)
  return {delivery = delivery, cost = tonumber(cost), state = state, since = tonumber(since), suspect = suspect}
end
local function held_text(m)
  return m.delivery .. '|' .. int(m.cost) .. '|' .. m.state .. '|' .. int(m.since) .. '|' .. m.suspect
end
