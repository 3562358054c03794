-- How long batches are known: each record goes by itself, and the list of them with the last.
local function keep(key, id, us)
  local ms = math.floor(us / 1000)
  call('PEXPIRE', key, int(ms))
  call('ZADD', K .. 'batches', int(now + us), id)
  if call('PTTL', K .. 'batches') < ms then call('PEXPIRE', K .. 'batches', int(ms)) end
end
