-- What a healthy response is, for a frontend: path, status and body, each empty where nothing is said.
--
-- KEYS  the frontend's hash
-- Returns {1, path, status, body}. The number comes first because the client library takes an array that begins with a word
-- such as "message" for a message.
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {1, '', '', ''} end
local reply = {1}
for _, value in ipairs({'path', 'status', 'body'}) do
  reply[#reply + 1] = redis.call('HGET', KEYS[1], value) or ''
end
return reply
