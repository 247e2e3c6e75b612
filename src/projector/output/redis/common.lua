-- What the scripts share; it comes before each of them. KEYS[1] is the hash with the state of a projection, whose fields are
--   shards             the number of shards
--   part:SHARD         the part of the source that it is, such as a partition, where the source has such
--   partid:SHARD       what tells that part from one of the same name that was made later
--   source, server     which events these are the positions of
--   position:SHARD     the last position that is done
--   owner:SHARD        the worker that handles it
--   fence:SHARD        how often it has changed its owner
--   begun:SHARD        POSITION:COUNT:FINGERPRINT of an event of whose commands only the first COUNT are done
--   failure:SHARD      POSITION WHY of an event that it waits before
--   uncalled:SHARD     FENCE TYPES of handlers that the owner with this fence has had no event for, a JSON list
--   worker:WORKER      when its lease ends, in milliseconds
local state = KEYS[1]

local function get(field)
  return redis.call('HGET', state, field)
end

-- Whether one position, in digits, is beyond another; -1 is before all others. Lua's own numbers are exact up to 2^53 only.
local function is_beyond(one, other)
  if one == '-1' or other == '-1' then
    return one ~= '-1'
  end
  if #one ~= #other then
    return #one > #other
  end
  return one > other
end

local function owns(worker, shard, fence)
  return get('owner:' .. shard) == worker and get('fence:' .. shard) == fence
end

-- Moves a checkpoint. What is noted of events up to there is of no more interest.
local function move(shard, position)
  redis.call('HSET', state, 'position:' .. shard, position)
  for _, kind in ipairs({'begun:', 'failure:'}) do
    local at = string.match(get(kind .. shard) or '', '^%d+')
    if at and not is_beyond(at, position) then
      redis.call('HDEL', state, kind .. shard)
    end
  end
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Nothing is written where the state is gone: half of it would be taken for all of it.
if not get('shards') then
  return {'gone'}
end
