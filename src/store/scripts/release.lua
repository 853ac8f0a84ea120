-- Gives up the lease of a backend that stays dead, and tells the other instances of it as of a new mark. `identity.lua` comes
-- before it.
--
-- KEYS  the frontend's list, its dead set, the backend's lease
-- ARGV  the holder's name, the channel, the frontend's host, the backend's URL
-- Returns whether there was a lease to give up.
if redis.call('TYPE', KEYS[3]).ok ~= 'string' or redis.call('GET', KEYS[3]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[3])
if redis.call('TYPE', KEYS[1]).ok ~= 'list' or redis.call('TYPE', KEYS[2]).ok ~= 'set' then return 1 end

local list = redis.call('LRANGE', KEYS[1], 1, -1)
local present = positions(list, ARGV[4])
for _, position in ipairs(present) do
  local index = format('%d', position - 1)
  if redis.call('SISMEMBER', KEYS[2], index) == 1 then
    local spelling = trim(list[present[1]])
    redis.call('PUBLISH', ARGV[2], table.concat({ARGV[3], spelling, index, format('%d', #list)}, ';'))
    return 1
  end
end
return 1
