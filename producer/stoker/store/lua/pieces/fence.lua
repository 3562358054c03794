-- Only the leader whose whole token stands in `leader` goes on: Redis itself fences a deposed one.
local token = ARGV[1]
if call('HGET', K .. 'leader', 'token') ~= token then return {'FENCED'} end
