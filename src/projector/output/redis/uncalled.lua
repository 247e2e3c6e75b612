-- Writes down which handlers the owner of shards has had no event for.
-- ARGV: the worker, for each: shard, fence, note.
for index = 2, #ARGV, 3 do
  if owns(ARGV[1], ARGV[index], ARGV[index + 1]) then
    redis.call('HSET', state, 'uncalled:' .. ARGV[index], ARGV[index + 2])
  end
end
return redis.status_reply('OK')
