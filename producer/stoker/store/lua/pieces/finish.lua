-- The one way a request ends. Nothing happens to an id after it.
-- result:<id> = state|nonce|digest|id|accepted|begun|settled|attempts|reason|inc|history|size| body (msgpack, may be empty)
local gone, wakes, late = {}, {}, {}
local settled_at, result_ttl = int(now), int(RESULT_TTL)

-- dead:<id> = time|reason|attempts|failures|losses|history|size| body, payload
local function bury(id, f, reason, body)
  local payload = call('GET', K .. 'payload:' .. id)
  local head = table.concat({int(now), reason, f[ATTEMPTS], f[FAILURES], f[LOSSES], f[HISTORY], #body}, '|') .. '|'
  call('SET', K .. 'dead:' .. id, head .. body .. payload, 'PX', DEAD_TTL)
  call('ZADD', K .. 'dead', int(now), id)
end

local function close_tokens(id, f, state)
  local key = K .. 'tokens:' .. id .. ':' .. f[NONCE]
  call('XADD', key, '*', 'end', state)
  call('PEXPIRE', key, TOKENS_TTL)
end

-- state: succeeded, failed, expired or cancelled; dead: whether it becomes a dead letter.
local function finish(id, f, state, reason, body, inc, dead)
  local head = state .. '|' .. f[NONCE] .. '|' .. f[DIGEST] .. '|' .. id .. '|' .. f[ACCEPTED] .. '|' .. f[BEGUN] .. '|'
    .. settled_at .. '|' .. f[ATTEMPTS] .. '|' .. reason .. '|' .. inc .. '|' .. f[HISTORY] .. '|' .. #body .. '|'
  local whole = head .. body
  if not call('SET', K .. 'result:' .. id, whole, 'NX', 'PX', result_ttl) then
    ev(id, 'twice', state)
    return
  end
  if f[STATE] == 'Q' then
    call('ZREM', lane(f), member(id, f))
    if f[GROUP] == '' then count_lane(f[CLASS], f[TENANT], -1) end
    if is_sheddable(f[TAIL]) then call('ZREM', K .. 'sheddable', id) end
  end
  if f[STATE] == 'Y' then call('ZREM', K .. 'delayed', id) end
  if f[STATE] == 'Q' or f[STATE] == 'Y' then count_one(f[TENANT], -1, tonumber(f[BYTES]), f[TAIL]) end
  if f[DEADLINE] ~= '0' then late[#late + 1] = id end
  if dead then bury(id, f, reason, body) end
  if f[STREAM] == '1' then close_tokens(id, f, state) end
  local n = #gone
  gone[n + 1], gone[n + 2] = K .. 'payload:' .. id, K .. 'flight:' .. id
  if f[REPLY] ~= '' then
    local w = wakes[f[REPLY]]
    if not w then w = {} wakes[f[REPLY]] = w end
    w[#w + 1] = #body <= WAKEUP and whole or head
  end
  count(state, f[TENANT], 1)
  ev(id, 'end', state, f[NONCE], reason ~= '' and reason or '-', dead and 'dead' or '-')
end

-- Once a call, after the last `finish`: delete, and wake each client once.
local function finish_all()
  if #gone > 0 then call('UNLINK', unpack(gone)) end
  if #late > 0 then call('ZREM', K .. 'deadlines', unpack(late)) end
  for client, w in pairs(wakes) do
    local key = K .. 'reply:' .. client
    if call('RPUSH', key, unpack(w)) > REPLY_LEN then call('LTRIM', key, -REPLY_LEN, -1) end
    call('PEXPIRE', key, REPLY_TTL)
  end
  gone, wakes, late = {}, {}, {}
end
