-- The history: one entry a script call with a line per request; all lines of a call share their place in it.
local lines = {}
local function ev(...)
  if EVENTS then lines[#lines + 1] = table.concat({...}, ' ') end
end
local function emit(script, by)
  if #lines > 0 then
    call('XADD', K .. 'events', 'MAXLEN', '~', EVENTS_LEN, '*',
      'script', script, 'time', int(now), 'by', by, 'lines', table.concat(lines, '\n'))
  end
end
