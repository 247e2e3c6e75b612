-- How long the server keeps what it confirms: its maxmemory-policy, and 1 where it has an append-only file, 0 where it has none; '' for what it does not say.
local function told(section, name)
  local text = redis.pcall('INFO', section)
  return type(text) == 'string' and string.match(text, name .. ':(%S+)') or ''
end

return {told('memory', 'maxmemory_policy'), told('persistence', 'aof_enabled')}
