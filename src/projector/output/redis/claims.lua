-- Tells the claims of all Projections, and writes those of one where all are still as its worker has read them.
-- KEYS: the hash with the claims, a field for each Projection. ARGV: nothing where they are only read; else the Projection, its claims or '' for none, and the digest
-- that was read.
-- Returns {'foreign'} where it is no hash, {'written'}, or {'kept', digest of all, field, value, …}.
local fields = redis.pcall('HGETALL', KEYS[1])
if fields.err then
  if string.find(fields.err, 'WRONGTYPE', 1, true) then
    return {'foreign'}
  end
  -- The server refuses to read it, and now the whole script as well.
  return redis.call('HGETALL', KEYS[1])
end
local names, values, parts = {}, {}, {}
for index = 1, #fields, 2 do
  table.insert(names, fields[index])
  values[fields[index]] = fields[index + 1]
end
table.sort(names)
for _, name in ipairs(names) do
  table.insert(parts, #name .. ':' .. name .. #values[name] .. ':' .. values[name])
end
local digest = redis.sha1hex(table.concat(parts))
if ARGV[3] ~= digest then
  table.insert(fields, 1, digest)
  table.insert(fields, 1, 'kept')
  return fields
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return {'written'}
