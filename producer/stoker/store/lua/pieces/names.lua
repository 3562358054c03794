-- An id, a nonce or a channel that a caller gives: nothing in it may separate fields, members or keys.
local function is_name(text) return text and #text <= 128 and match(text, '^[%w._~-]+$') ~= nil end
