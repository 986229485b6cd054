-- Purpose: where changes were or may have been lost: nothing older is readable and nothing can be filled (closed scope).
-- Closing, and moving the rows past what was lost, are always one script. Twin: invalidator/guard.py.

local NONE_COUNTED = '0' .. ZERO_STAMP

local function closed(scope, digest, offset)
  if not scope then return 'c' .. ZERO_POSITION .. (digest ~= '' and digest or ZERO_STAMP) .. offset .. NONE_COUNTED end
  if not is_open(scope) then offset = larger(scope:sub(50, 65), offset) end
  return 'c' .. scope:sub(2, 33) .. (digest ~= '' and digest or scope:sub(34, 49)) .. offset .. NONE_COUNTED
end

-- The fence that the region opens with covers every stamp of before, so older fences need no keeping.
local function drop_fences(h, f)
  redis.call('HDEL', h, 'w')
  redis.call('UNLINK', f)
  redis.call('HSET', f, '*', '=' .. ZERO_POSITION)
  local all = redis.call('HGETALL', h)
  for i = 1, #all, 2 do
    if all[i]:sub(1, 2) == 's:' and is_open(all[i + 1]) then
      redis.call('HSET', h, all[i], all[i + 1]:sub(1, 49) .. '=' .. ZERO_POSITION)
    end
  end
end

-- Closes what ARGV[at] names: how many; per scope: its field, the control offset from which heartbeats count, the
-- digest of the view or ''. The index after them.
local function close_scopes(h, f, ARGV, at)
  local count = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, count do
    local field = ARGV[at]
    redis.call('HSET', h, field, closed(redis.call('HGET', h, field), ARGV[at + 2], ARGV[at + 1]))
    if field == 's:' then drop_fences(h, f) end
    at = at + 3
  end
  return at
end

-- Begins an epoch, unless it or a later one began already: the region closes from control offset `offset` on.
local function begin_epoch(h, f, epoch, history, offset)
  local old = redis.call('HGET', h, 'e')
  if old:sub(1, 8) >= epoch then return end
  redis.call('HSET', h, 's:', closed(redis.call('HGET', h, 's:'), '', offset))
  drop_fences(h, f)
  redis.call('HDEL', h, 'b')
  redis.call('HSET', h, 'e', epoch .. old:sub(9, 9) .. history)
end
