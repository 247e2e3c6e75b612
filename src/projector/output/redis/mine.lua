-- The shards of a worker.
-- ARGV: the worker.
-- Returns for each: shard, fence, position; or {'broken', shard}.
local mine = {}
local fields = redis.call('HGETALL', state)
for index = 1, #fields, 2 do
  local shard = string.match(fields[index], '^owner:(%d+)$')
  if shard and fields[index + 1] == ARGV[1] then
    local fence, position = get('fence:' .. shard), get('position:' .. shard)
    if not fence or not position then
      return {'broken', shard}
    end
    table.insert(mine, shard)
    table.insert(mine, fence)
    table.insert(mine, position)
  end
end
return mine
