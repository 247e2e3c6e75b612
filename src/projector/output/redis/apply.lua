-- Runs the commands of events and moves the checkpoints of their shards, if this worker still owns them.
-- ARGV: the worker; the number of shards, for each: shard, fence, position before, position after;
--       the number of events, for each: shard, position, place in the order of its shard, number of commands, for each: number of words, fingerprint of the handler up to
--       and with it, words.
-- Returns {'lost'}, {'broken', shard} or {'done'}. Or, with the events before it done: {'failed', event, command, error}, where the commands
-- before it are done as well, or {'changed', event, count}, where the first commands of another handler are done.
local worker = ARGV[1]
local steps = {}
for step = 1, number() do
  local shard, fence, before, after = word(), word(), word(), word()
  local position = get('position:' .. shard)
  if not position then
    return {'broken', shard}
  end
  if position ~= before or not owns(worker, shard, fence) then
    return {'lost'}
  end
  steps[step] = {shard, after}
end
if not steps[1] then
  return {'done'}
end

-- The server judges at a script's first write whether it may write at all, and each kind of command by the user's rights. Whatever it refuses
-- is refused here, before anything of the handlers is done.
redis.call('HSET', state, 'owner:' .. steps[1][1], worker)
redis.call('HDEL', state, 'nothing')

local reached = {}

local function stop(reply)
  for shard, position in pairs(reached) do
    move(shard, position)
  end
  return reply
end

for event = 1, number() do
  local shard, position, place, commands = word(), word(), word(), number()
  -- Redis takes nothing back: how far a failed event has come is kept, so that no command runs twice.
  local of, count, noted = string.match(get('begun:' .. shard) or '', '^(%d+):(%d+):(%x+)$')
  local done, last = 0, nil
  if of == position then
    done = tonumber(count)
  end
  if done > commands then
    return stop({'changed', event, done})
  end
  for command = 1, commands do
    local words, through = number(), word()
    if command == done and through ~= noted then
      return stop({'changed', event, done})
    end
    if command > done then
      local reply = redis.pcall(unpack(ARGV, at + 1, at + words))
      if type(reply) == 'table' and reply.err then
        -- What comes before a later event that is begun has been superseded once and may be repeated as a whole; that event may not.
        if last and not (of and is_beyond(of, position)) then
          redis.call('HSET', state, 'begun:' .. shard, position .. ':' .. (command - 1) .. ':' .. last)
        end
        return stop({'failed', event, command, reply.err})
      end
    end
    at, last = at + words, through
  end
  reached[shard] = place
end

for _, step in ipairs(steps) do
  move(step[1], step[2])
end
return {'done'}
