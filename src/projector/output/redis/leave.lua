-- Ends a worker's lease.
-- ARGV: the worker.
redis.call('HDEL', state, 'worker:' .. ARGV[1])
return redis.status_reply('OK')
