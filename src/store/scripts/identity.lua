-- Which elements of a list mean which backend: scheme, host and port, as `routing/origin.rs` reads them. This comes before the
-- scripts that need it. Lists hold what strangers wrote, so that no pattern here may look at a text more than once.

local find, sub, match, lower, format = string.find, string.sub, string.match, string.lower, string.format

local is_white = {[9] = true, [10] = true, [12] = true, [13] = true, [32] = true}

-- The text without the white space around it.
local function trim(text)
  local first, last = 1, #text
  while is_white[string.byte(text, first)] do first = first + 1 end
  while last >= first and is_white[string.byte(text, last)] do last = last - 1 end
  return sub(text, first, last)
end

-- The number of a part of a dotted address.
local function octet(digits)
  return #digits <= 3 and not find(digits, '^0.') and tonumber(digits) <= 255 and tonumber(digits)
end

-- The groups of a part of an IPv6 address, or nothing if it is none.
local function groups(text)
  local found = {}
  if text == '' then return found end
  for group in string.gmatch(text .. ':', '([^:]*):') do
    if not find(group, '^[0-9A-Fa-f]+$') or #group > 4 then return nil end
    found[#found + 1] = format('%x', tonumber(group, 16))
  end
  return found
end

-- An IPv6 address with all of its groups, or nothing if it is none.
local function ipv6(text)
  -- Nine groups cannot be, and neither can anything longer than eight with a dotted end.
  if #text > 45 then return nil end
  local start, a, b, c, d = match(text, '^(.*:)([0-9]+)%.([0-9]+)%.([0-9]+)%.([0-9]+)$')
  if start then
    a, b, c, d = octet(a), octet(b), octet(c), octet(d)
    if not (a and b and c and d) then return nil end
    text = format('%s%x:%x', start, a * 256 + b, c * 256 + d)
  end
  local gap = find(text, '::', 1, true)
  local all = groups(gap and sub(text, 1, gap - 1) or text)
  if not all then return nil end
  if gap then
    local tail = groups(sub(text, gap + 2))
    if not tail or #all + #tail > 7 then return nil end
    for _ = 1, 8 - #all - #tail do all[#all + 1] = '0' end
    for _, group in ipairs(tail) do all[#all + 1] = group end
  end
  return #all == 8 and table.concat(all, ':') or nil
end

-- What a URL has in common with all spellings of the same backend, or nothing if it is junk; then a piece that is found in each
-- spelling once it is in lower case, and another.
local function identity(url)
  url = trim(url)
  local scheme, rest = 'http', url
  local stop = find(url, '[/?#]')
  if stop and stop > 1 and sub(url, stop - 1, stop + 1) == '://' then
    scheme, rest = lower(sub(url, 1, stop - 2)), sub(url, stop + 2)
  end
  if scheme ~= 'http' and scheme ~= 'https' then return nil end
  local authority = match(rest, '^[^/?#]*')
  if find(authority, '[^\33-\126]') then return nil end
  local address = match(authority, '@([^@]*)$') or authority

  local host, port
  if sub(address, 1, 1) == '[' then
    host, port = match(address, '^%[([^%]]*)%](.*)$')
    host = host and ipv6(host)
    if not host then return nil end
    host = '[' .. host .. ']'
  else
    host, port = match(address, '^([^:]*)(.*)$')
    if host == '' or find(host, "[^A-Za-z0-9%-%._~!$&'()*+,;=]") then return nil end
    host = lower(host)
  end

  local clue = ''
  if port == '' or port == ':' then
    port = scheme == 'https' and '443' or '80'
  else
    if not find(port, '^:[0-9]+$') then return nil end
    port = match(port, '^:0*(.*)$')
    if port == '' or #port > 5 or tonumber(port) > 65535 then return nil end
    if port ~= (scheme == 'https' and '443' or '80') then clue = port end
  end
  return scheme .. '://' .. host .. ':' .. port, sub(host, 1, 1) == '[' and '[' or host, clue
end

-- The positions in a list of the elements that mean the same backend as this URL.
local function positions(list, url)
  local found = {}
  local wanted, host, port = identity(url)
  if not wanted then return found end
  local has_letters = find(host, '[a-z]')
  for position, element in ipairs(list) do
    -- Most elements are somebody else's, which shows without reading them.
    if element == url
      or (find(element, port, 1, true) and find(has_letters and lower(element) or element, host, 1, true)
        and identity(element) == wanted) then
      found[#found + 1] = position
    end
  end
  return found
end
