-- Runs the commands of messages that are not noted yet, and notes them.
-- ARGV: for how many milliseconds notes are kept; the number of messages, for each: its name, number of commands, for each: number of words, fingerprint of
--       the handler up to and with it, words.
-- Returns {'done'}. Or, with the messages before it done: {'foreign', message}, whose note no worker has written, {'failed', message, command, error}, where the commands before it are done as well,
-- or {'changed', message, count}, where the first commands of another handler are done.
local keep = ARGV[1]

for message = 1, number() do
  local name, commands = word(), number()
  local key = seen(name)
  local note = note_of(name)
  local times, count, begun = unfinished(note)
  local done, last = tonumber(count), begun
  local is_handled = note == '1'
  if is_handled then
    redis.call('PEXPIRE', key, keep)
  elseif not done then
    return {'foreign', message}
  elseif done > commands then
    return {'changed', message, done}
  else
    -- The server judges here, before anything of the message is done, whether it may write at all, and whether the key is still in this node of a cluster.
    redis.call('SET', key, '1', 'PX', keep)
  end
  for command = 1, commands do
    local words, through = number(), word()
    if not is_handled and command == done and through ~= begun then
      redis.call('SET', key, note, 'PX', keep)
      return {'changed', message, done}
    end
    if not is_handled and command > done then
      local reply = redis.pcall(unpack(ARGV, at + 1, at + words))
      if type(reply) == 'table' and reply.err then
        -- Redis takes nothing back: how far the message has come is kept, so that no command runs twice.
        redis.call('SET', key, times .. ':' .. (command - 1) .. ':' .. last, 'PX', keep)
        return {'failed', message, command, reply.err}
      end
      last = through
    end
    at = at + words
  end
  if not is_handled and times ~= '0' then
    redis.call('HDEL', failed, name)
  end
end
return {'done'}
