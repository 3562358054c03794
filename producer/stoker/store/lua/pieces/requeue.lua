-- Back to its lane with its ORIGINAL score, so that a lost worker costs a request no place. Saves the flight.
local function requeue(id, f, why)
  local delivery = f[DELIVERY]
  f[DELIVERY], f[STATE] = '', 'Q'
  call('ZADD', lane(f), f[SCORE], member(id, f))
  if is_sheddable(f[TAIL]) then call('ZADD', K .. 'sheddable', f[SCORE], id) end
  save(id, f)
  if f[GROUP] == '' then count_lane(f[CLASS], f[TENANT], 1) end
  count_one(f[TENANT], 1, tonumber(f[BYTES]), f[TAIL])
  ev(id, 'requeue', delivery, f[GROUP] ~= '' and 'suspect' or f[CLASS], f[SCORE], f[LOSSES], why)
end
