-- One step of watching a dead backend. What it decides by and what it changes are one and the same state of the data.
--
-- KEYS  the frontend's list, its dead set, the backend's lease
-- ARGV  what is wanted: claim, keep, follow, follow-early or revive; the holder's name; the lease's seconds; the backend's
--       URL; then the indexes under which it was last recorded
-- Returns {0} if it is alive, {1, indexes...} if the lease is now the holder's, {2, PTTL} if it is another's, {3} if the
-- backend is not in the list any more.
local frontend, dead, lease = KEYS[1], KEYS[2], KEYS[3]
local intent, holder, seconds, url = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local function kind(key)
  return redis.call('TYPE', key).ok
end

local owner = kind(lease)
if owner == 'string' then
  owner = redis.call('GET', lease)
  if owner ~= holder then return {2, redis.call('PTTL', lease)} end
elseif owner ~= 'none' then
  return {2, redis.call('PTTL', lease)}
else
  owner = nil
end

local list, present, is_present = nil, {}, {}
if kind(frontend) == 'list' then
  list = redis.call('LRANGE', frontend, 1, -1)
  for position, element in ipairs(list) do
    if element == url then
      local index = string.format('%d', position - 1)
      present[#present + 1], is_present[index] = index, true
    end
  end
end
local set = kind(dead)
local has_marks = set == 'set'

local is_marked = false
local outdated = {}
if has_marks then
  for _, index in ipairs(present) do
    is_marked = is_marked or redis.call('SISMEMBER', dead, index) == 1
  end
  for position = 5, #ARGV do
    local index = ARGV[position]
    if not is_present[index] and redis.call('SISMEMBER', dead, index) == 1 then
      outdated[#outdated + 1] = index
    end
  end
end

if intent == 'follow-early' and not owner and not is_marked then return {0} end

-- An index that meant this backend before the list was edited must not bury who stands there now, unless that one is being
-- watched itself. Without a list nobody stands anywhere.
local remembered = {}
if list then
  for _, index in ipairs(outdated) do
    local other = list[tonumber(index) + 1]
    if other and redis.call('EXISTS', dead .. ':' .. other) == 1 then
      remembered[#remembered + 1] = index
    else
      redis.call('SREM', dead, index)
    end
  end
end

if #present == 0 or not (has_marks or set == 'none') then
  redis.call('DEL', lease)
  return {3}
end

if intent == 'revive' then
  for _, index in ipairs(present) do redis.call('SREM', dead, index) end
  redis.call('DEL', lease)
  return {0}
end

redis.call('SET', lease, holder, 'EX', seconds)

-- Whoever finds neither a lease nor a mark leaves it to the next check to say whether there should be one.
local is_known = (intent == 'keep' and owner) or (intent == 'follow' and not owner)
if is_known or is_marked or #outdated > 0 then
  for _, index in ipairs(present) do redis.call('SADD', dead, index) end
  if redis.call('PTTL', dead) < seconds * 1000 then redis.call('EXPIRE', dead, seconds) end
end

local reply = {1}
for _, index in ipairs(present) do reply[#reply + 1] = index end
for _, index in ipairs(remembered) do reply[#reply + 1] = index end
return reply
