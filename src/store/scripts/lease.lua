-- One step of watching a dead backend. What it decides by and what it changes are one and the same state of the data.
-- `identity.lua` comes before it.
--
-- KEYS  the frontend's list, its dead set
-- ARGV  what is wanted: claim, keep, follow, follow-early or revive; the holder's name; the lease's seconds; the spelling of the
--       backend's URL under which the holder last had the lease, or nothing; how many spellings follow; the spellings under
--       which it was announced; how many indexes follow; the indexes that it was seen to have; then those under which it was
--       announced
-- Returns {0} if it is alive, {1, spelling, indexes...} if the lease is now the holder's, under the list's first spelling of the
-- URL, {2, PTTL} if it is another's, {3} if the backend is not in the list any more.
local frontend, dead = KEYS[1], KEYS[2]
local intent, holder, seconds, leased = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local spellings, seen, announced = {}, {}, {}
local numbers = 6 + tonumber(ARGV[5])
for position = 6, numbers - 1 do spellings[#spellings + 1] = ARGV[position] end
for position = numbers + 1, #ARGV do
  local into = position <= numbers + tonumber(ARGV[numbers]) and seen or announced
  into[#into + 1] = ARGV[position]
end

local function kind(key)
  return redis.call('TYPE', key).ok
end

local function lease_of(spelling)
  return dead .. ':' .. spelling
end

-- The owner of a lease; nothing if there is none. What is no lease is nobody's that we know.
local function owner_of(key)
  local what = kind(key)
  if what == 'none' then return nil end
  return what == 'string' and redis.call('GET', key) or false
end

local function drop(key)
  if owner_of(key) == holder then redis.call('DEL', key) end
end

local list, present, is_present = nil, {}, {}
local spelling = trim(spellings[1])
if kind(frontend) == 'list' then
  list = redis.call('LRANGE', frontend, 1, -1)
  for _, position in ipairs(positions(list, spellings[1])) do
    local index = format('%d', position - 1)
    -- Others name their leases after what the list has, or after what they heard.
    if #present < 16 then spellings[#spellings + 1] = list[position] end
    if #present == 0 then spelling = trim(list[position]) end
    present[#present + 1], is_present[index] = index, true
  end
end

local lease = lease_of(spelling)
spellings[#spellings + 1] = spelling
local looked_at, is_held = {}, false
for _, name in ipairs(spellings) do
  if not looked_at[name] then
    looked_at[name] = true
    local key = lease_of(name)
    local owner = owner_of(key)
    if owner == false or (owner and owner ~= holder) then return {2, redis.call('PTTL', key)} end
    is_held = is_held or (owner ~= nil and (name == spelling or name == leased))
  end
end
if leased ~= '' and not looked_at[leased] then is_held = is_held or owner_of(lease_of(leased)) == holder end

local set = kind(dead)
local has_marks = set == 'set'
local is_listed = #present > 0

local is_marked = false
local outdated = {}
if has_marks then
  for _, index in ipairs(present) do
    is_marked = is_marked or redis.call('SISMEMBER', dead, index) == 1
  end
  local function collect(indexes)
    for _, index in ipairs(indexes) do
      if not is_present[index] and redis.call('SISMEMBER', dead, index) == 1 then outdated[#outdated + 1] = index end
    end
  end
  collect(seen)
  -- Whose index is announced with a URL that the list does not have, nobody knows.
  if is_listed then collect(announced) end
end

if intent == 'follow-early' and not is_held and not is_marked then return {0} end

-- An index that meant this backend before the list was edited must not bury who stands there now, unless that one is being
-- watched itself. Without a list nobody stands anywhere.
local remembered = {}
if list then
  for _, index in ipairs(outdated) do
    local other = list[tonumber(index) + 1]
    if other and redis.call('EXISTS', lease_of(other), lease_of(trim(other))) > 0 then
      remembered[#remembered + 1] = index
    else
      redis.call('SREM', dead, index)
    end
  end
end

if leased ~= '' and leased ~= spelling then drop(lease_of(leased)) end

if not is_listed or not (has_marks or set == 'none') then
  drop(lease)
  return {3}
end

if intent == 'revive' then
  for _, index in ipairs(present) do redis.call('SREM', dead, index) end
  drop(lease)
  return {0}
end

redis.call('SET', lease, holder, 'EX', seconds)

-- Whoever finds neither a lease nor a mark leaves it to the next check to say whether there should be one.
local is_known = (intent == 'keep' and is_held) or (intent == 'follow' and not is_held)
if is_known or is_marked or #outdated > 0 then
  for _, index in ipairs(present) do redis.call('SADD', dead, index) end
  if redis.call('PTTL', dead) < seconds * 1000 then redis.call('EXPIRE', dead, seconds) end
end

local reply = {1, spelling}
for _, index in ipairs(present) do reply[#reply + 1] = index end
for _, index in ipairs(remembered) do reply[#reply + 1] = index end
return reply
