
end

-- Comes after the script.
-- Returns when keys expire, the replies to its commands, and what it returns.
local is_done, ended = pcall(run)
for index, key in ipairs(keys) do
  local call = index == 1 and server.call or server.pcall
  if call('PEXPIRETIME', key) == -1 then
    call('PEXPIREAT', key, string.format('%.0f', expires))
  end
end
if not is_done then
  return type(ended) == 'table' and ended or server.error_reply(tostring(ended))
end
return {string.format('%.0f', expires), replies, ended}
