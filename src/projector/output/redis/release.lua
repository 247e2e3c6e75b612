-- Gives shards back, with the positions reached.
-- ARGV: the worker, for each: shard, fence, position before, position after.
for index = 2, #ARGV, 4 do
  local shard = ARGV[index]
  if owns(ARGV[1], shard, ARGV[index + 1]) then
    redis.call('HDEL', state, 'owner:' .. shard)
    if get('position:' .. shard) == ARGV[index + 2] then
      move(shard, ARGV[index + 3])
    end
  end
end
return redis.status_reply('OK')
