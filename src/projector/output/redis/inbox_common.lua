-- What the scripts on an inbox share; it comes before each of them. KEYS[1] is what the names of its keys begin with, which are
--   KEYS[1]:seen:MESSAGE   the note of a message, which expires: 1 where it is handled, and TIMES:COUNT:FINGERPRINT where it has failed so many times
--                          and only the first COUNT of its commands are done
--   KEYS[1]:failed         a hash: of messages that cannot be handled the time in milliseconds, a blank, and why
local failed = KEYS[1] .. ':failed'

local function seen(message)
  return KEYS[1] .. ':seen:' .. message
end

-- The note of a message; a text that is none where something else than a text is there.
local function note_of(message)
  local note = redis.pcall('GET', seen(message))
  if type(note) ~= 'table' then
    return note
  elseif string.find(note.err, 'WRONGTYPE', 1, true) then
    return ''
  end
  -- The server refuses to read it, and now the whole script as well.
  return redis.call('GET', seen(message))
end

-- How often a message has failed, how many of its commands are done, and the fingerprint of the handler up to there; nothing where its note is none.
local function unfinished(note)
  return string.match(note or '0:0:', '^(%d+):(%d+):(%x*)$')
end
