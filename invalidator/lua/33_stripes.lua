-- Purpose: the fences of many stripes, in as few calls as Lua's stack allows. Twin: invalidator/guard.py.

-- stripe -> fence of those that are named; one without a fence of its own has the default.
local function fences_of(f, stripes, default)
  local fences = {}
  for from = 1, #stripes, SLICE do
    local part = redis.call('HMGET', f, unpack(stripes, from, math.min(from + SLICE - 1, #stripes)))
    for i, fence in ipairs(part) do fences[stripes[from + i - 1]] = fence or default end
  end
  return fences
end

local function keep_fences(f, fences)
  local pairs_of = {}
  for stripe, fence in pairs(fences) do pairs_of[#pairs_of + 1] = stripe; pairs_of[#pairs_of + 1] = fence end
  for from = 1, #pairs_of, SLICE do
    redis.call('HSET', f, unpack(pairs_of, from, math.min(from + SLICE - 1, #pairs_of)))
  end
end
