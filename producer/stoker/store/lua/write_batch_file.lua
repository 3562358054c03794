-- Write a piece of a file that a batch keeps in Redis, or replace the file. All of the batch's files live on together.
-- KEYS[1] prefix
-- ARGV    batch id, file, offset of the piece in bytes (-1: it is the whole file), the piece, milliseconds for which the
--         batch's files are kept from now, most bytes that they may have together
-- Returns {OK (again too), bytes of all files} | {FULL (nothing was written), bytes that there would be}
local id, file, offset, piece, ms, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], tonumber(ARGV[6])
local sizes = K .. 'files:' .. id
local all, known, names = 0, 0, call('HGETALL', sizes)
for i = 1, #names, 2 do
  all = all + tonumber(names[i + 1])
  if names[i] == file then known = tonumber(names[i + 1]) end
end
local size = offset < 0 and #piece or math.max(known, offset + #piece)
all = all - known + size
if size > known and all > most then return {'FULL', int(all)} end
local key = K .. 'file:' .. id .. ':' .. file
if offset < 0 then call('SET', key, piece) elseif piece ~= '' then call('SETRANGE', key, int(offset), piece) end
call('HSET', sizes, file, int(size))
call('PEXPIRE', sizes, ms)
call('PEXPIRE', key, ms)
for i = 1, #names, 2 do call('PEXPIRE', K .. 'file:' .. id .. ':' .. names[i], ms) end
return {'OK', int(all)}
