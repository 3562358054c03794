-- now: microseconds by the clock of Redis, read once a script.
local now
do
  local t = call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end
