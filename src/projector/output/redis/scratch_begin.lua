-- Comes before a script with which handlers are tried, which becomes the function `run`. The last words of ARGV are not that script's: the keys that its commands
-- may write, how many these are, and when keys expire that nothing else lets expire, in milliseconds since 1970, or '' where that is not settled yet.
local server, all, ARGV = redis, ARGV, {}
local count, expires = tonumber(all[#all - 1]), tonumber(all[#all])
local keys, replies = {KEYS[1]}, {}
for index = 1, #all - 2 do
  table.insert(index > #all - 2 - count and keys or ARGV, all[index])
end
if not expires then
  local time = server.call('TIME')
  expires = time[1] * 1000 + 3600000
end

-- The first of these keys says whether the user may do it at all. Others may be of another node of a cluster, which is the failure of the command that writes them.
for index, key in ipairs(keys) do
  local call = index == 1 and server.call or server.pcall
  -- Handlers may look at when a key expires, and see no other time than their own.
  if call('PEXPIRETIME', key) == expires then
    call('PERSIST', key)
  end
end

-- What is shown of a reply.
local function bounded(reply, depth)
  if type(reply) == 'string' and #reply > 200 then
    return string.sub(reply, 1, 200) .. '…'
  elseif type(reply) == 'table' and not reply.ok then
    local items = {}
    for index = 1, math.min(#reply, 10) do
      items[index] = depth < 3 and bounded(reply[index], depth + 1) or '…'
    end
    if #reply > 10 then
      items[11] = '…'
    end
    return items
  end
  return reply
end

local redis = {call = server.call, status_reply = server.status_reply, sha1hex = server.sha1hex}
function redis.pcall(...)
  local reply = server.pcall(...)
  if type(reply) ~= 'table' or not reply.err then
    table.insert(replies, bounded(reply, 1))
  end
  return reply
end

local function run()
