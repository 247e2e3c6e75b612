-- Adds parts of the source as further shards, and tells all of them.
-- ARGV: the number of shards that there must be, or '' where nothing is to be added; for each part: its name, what tells it from others or '', and the
-- position that it begins after.
-- Returns for each shard: the part's name, and what tells it from others or ''; or {'broken', shard}.
local shards = tonumber(get('shards'))
if ARGV[1] == tostring(shards) then
  for index = 2, #ARGV, 3 do
    redis.call('HSET', state, 'part:' .. shards, ARGV[index], 'partid:' .. shards, ARGV[index + 1], 'position:' .. shards, ARGV[index + 2])
    shards = shards + 1
  end
  redis.call('HSET', state, 'shards', string.format('%d', shards))
end
local parts = {}
for shard = 0, shards - 1 do
  local part = get('part:' .. shard)
  if not part then
    return {'broken', tostring(shard)}
  end
  table.insert(parts, part)
  table.insert(parts, get('partid:' .. shard) or '')
end
return parts
