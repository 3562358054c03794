-- Members are dropped, and the credit lowered by their costs, in one HDEL and one HINCRBY a call; each counts once. The
-- room is news to the scheduler only while something waits for it.
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
    if something_waits() then ring() end
  end
  dropped, freed = {}, 0
end
