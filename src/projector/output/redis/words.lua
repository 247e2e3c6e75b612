-- Reads ARGV word by word, from the second on. `at` is the last that was read.
local at = 1

local function word()
  at = at + 1
  return ARGV[at]
end

local function number()
  return tonumber(word())
end

