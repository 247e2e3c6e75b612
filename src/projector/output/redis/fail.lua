-- Records that a shard waits before an event.
-- ARGV: the worker, shard, fence, position, why.
if owns(ARGV[1], ARGV[2], ARGV[3]) then
  redis.call('HSET', state, 'failure:' .. ARGV[2], ARGV[4] .. ' ' .. ARGV[5])
end
return redis.status_reply('OK')
