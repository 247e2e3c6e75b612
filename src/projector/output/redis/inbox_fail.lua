-- Records that a message cannot be handled, and why.
-- ARGV: for how many milliseconds notes are kept; for how many it is told of a message that it failed; of how many messages at most; the message's name; why.
-- Returns how often that was recorded, 0 where the message is handled, and 'foreign' where its note, which no worker has written, does not say it.
local keep, told_for, most, name, why = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local note = note_of(name)
if note == '1' then
  return 0
end
local times, count, begun = unfinished(note)
if times then
  times = times + 1
  redis.call('SET', seen(name), string.format('%d', times) .. ':' .. count .. ':' .. begun, 'PX', keep)
end
local time = redis.call('TIME')
local now, told = time[1] * 1000 + math.floor(time[2] / 1000), 0
local fields = redis.call('HGETALL', failed)
for index = 1, #fields, 2 do
  local at = tonumber(string.match(fields[index + 1], '^%d+'))
  if fields[index] ~= name then
    -- No worker has tried it again since: it was removed from the queue.
    if not at or at < now - told_for then
      redis.call('HDEL', failed, fields[index])
    else
      told = told + 1
    end
  end
end
if told < most then
  redis.call('HSET', failed, name, string.format('%.0f', now) .. ' ' .. why)
end
redis.call('PEXPIRE', failed, string.format('%d', told_for))
return times or 'foreign'
