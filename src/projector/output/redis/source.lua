-- Notes which events the positions are of, unless they are of others.
-- ARGV: where the events are, and the server or '' where that is not known.
-- Returns {'same'}, or {'other', where, server or ''}.
local source, server = get('source'), get('server')
if (source and source ~= ARGV[1]) or (server and ARGV[2] ~= '' and server ~= ARGV[2]) then
  return {'other', source or '', server or ''}
end
if not source then
  redis.call('HSET', state, 'source', ARGV[1])
end
if not server and ARGV[2] ~= '' then
  redis.call('HSET', state, 'server', ARGV[2])
end
return {'same'}
