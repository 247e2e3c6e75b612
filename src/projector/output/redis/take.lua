-- Takes those of the shards that are free.
-- ARGV: the worker, shards.
-- Returns for each shard that was taken: shard, fence, position; or {'broken', shard}.
local at, taken = now(), {}
for index = 2, #ARGV do
  local shard = ARGV[index]
  local owner, position = get('owner:' .. shard), get('position:' .. shard)
  if not position then
    return {'broken', shard}
  end
  local lease = owner and get('worker:' .. owner)
  if not lease or tonumber(lease) <= at then
    redis.call('HSET', state, 'owner:' .. shard, ARGV[1])
    table.insert(taken, shard)
    table.insert(taken, tostring(redis.call('HINCRBY', state, 'fence:' .. shard, 1)))
    table.insert(taken, position)
  end
end
return taken
