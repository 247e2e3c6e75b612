-- Renews the lease of a worker where it is told a length, and tells who lives and who owns what.
-- ARGV: the worker, the lease's length in milliseconds or 0, the worker's name where earlier runs of it are to be forgotten.
-- Returns the live workers, and shards with their owners.
local at, lease = now(), tonumber(ARGV[2])
local forgotten = ARGV[3] and ARGV[3] .. ':'
if lease > 0 then
  redis.call('HSET', state, 'worker:' .. ARGV[1], string.format('%.0f', at + lease))
end
local members, owners = {}, {}
local fields = redis.call('HGETALL', state)
for index = 1, #fields, 2 do
  local kind, of = string.match(fields[index], '^(%l+):(.*)$')
  if kind == 'owner' then
    table.insert(owners, of)
    table.insert(owners, fields[index + 1])
  elseif kind == 'worker' then
    local ends = tonumber(fields[index + 1])
    local is_earlier = forgotten and of ~= ARGV[1] and string.sub(of, 1, #forgotten) == forgotten
    if is_earlier or (lease > 0 and ends < at - 60000) then
      redis.call('HDEL', state, fields[index])
    elseif ends > at then
      table.insert(members, of)
    end
  end
end
return {members, owners}
