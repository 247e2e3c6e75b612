-- Makes the state of a projection where there is none: no field of it is made up where there is another.
-- KEYS: the state. ARGV: the number of shards, and the position after which the first event comes.
-- Returns {'evicts', policy}, {'foreign'}, {'broken', shard}, or {'made' or 'found', number of shards, policy or '' where the server does not say,
-- 'parts' where they have names, else ''}.
local state, policy = KEYS[1], ''
local memory = redis.pcall('INFO', 'memory')
if type(memory) == 'string' then
  policy = string.match(memory, 'maxmemory_policy:(%S+)') or ''
end
if string.match(policy, '^allkeys') then
  return {'evicts', policy}
end
if #redis.call('HGETALL', state) == 0 then
  redis.call('HSET', state, 'shards', ARGV[1])
  for shard = 0, ARGV[1] - 1 do
    redis.call('HSET', state, 'position:' .. shard, ARGV[2])
  end
  return {'made', ARGV[1], policy, ''}
end
local shards = redis.call('HGET', state, 'shards')
if not shards or not tonumber(shards) then
  return {'foreign'}
end
for shard = 0, shards - 1 do
  if not redis.call('HGET', state, 'position:' .. shard) then
    return {'broken', tostring(shard)}
  end
end
return {'found', shards, policy, redis.call('HGET', state, 'part:0') and 'parts' or ''}
