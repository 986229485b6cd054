-- Purpose: where changes were or may have been lost: nothing older is readable and nothing can be filled (closed scope).

local function closed(scope, digest, offset)
  if not scope then return 'c' .. ZERO_POSITION .. digest .. offset .. '0' end
  if not is_open(scope) then offset = larger(scope:sub(50, 65), offset) end
  return 'c' .. scope:sub(2, 33) .. (digest ~= '' and digest or scope:sub(34, 49)) .. offset .. '0'
end

-- sp1_cold: creates a shard that is not there, closed. A header that is there wins.
-- KEYS: header, fences. ARGV: version; control offset; number of views; per view: name, digest; per row: field, row.
-- Reply: APPLIED or DISPLACED.
local function cold(KEYS, ARGV)
  if redis.call('EXISTS', KEYS[1]) == 1 then return {'DISPLACED'} end
  local fields = {'v', VERSION, 'e', '00000000o', 's:', closed(nil, ZERO_STAMP, ARGV[2])}
  local at = 4
  for _ = 1, tonumber(ARGV[3]) do
    fields[#fields + 1] = 's:' .. ARGV[at]
    fields[#fields + 1] = closed(nil, ARGV[at + 1], ARGV[2])
    at = at + 2
  end
  for i = at, #ARGV do fields[#fields + 1] = ARGV[i] end
  redis.call('UNLINK', KEYS[2])
  redis.call('HSET', KEYS[2], '*', '=' .. ZERO_POSITION)
  for i = 1, #fields, 2 do redis.call('HSET', KEYS[1], fields[i], fields[i + 1]) end
  return {'APPLIED'}
end
redis.register_function{function_name = 'sp1_cold', callback = cold, flags = {'allow-oom'}}

-- sp1_close: closes a scope and jumps rows, in one step.
-- KEYS: header, fences. ARGV: version; scope field; control offset from which heartbeats count; epoch (8) that begins
--   or ''; history; digest of the view or ''; digest that all rows take, or ''; per row that jumps: field, row.
-- Reply: APPLIED, COLD, or SUPERSEDED when that epoch, or a later one, began already.
local function close(KEYS, ARGV)
  local h, f, field = KEYS[1], KEYS[2], ARGV[2]
  local refused = unusable(h)
  if refused then return refused end
  local epoch = redis.call('HGET', h, 'e')
  if ARGV[4] ~= '' then
    if epoch:sub(1, 8) >= ARGV[4] then return {'SUPERSEDED'} end
    redis.call('HSET', h, 'e', ARGV[4] .. epoch:sub(9, 9) .. ARGV[5])
    redis.call('HDEL', h, 'b')
  end
  redis.call('HSET', h, field, closed(redis.call('HGET', h, field), ARGV[6], ARGV[3]))
  if field == 's:' then  -- the fence it opens with covers every stamp of before, so older fences need no keeping
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
  if ARGV[7] ~= '' then
    local all = redis.call('HGETALL', h)
    for i = 1, #all, 2 do
      if all[i]:sub(1, 2) == 't:' then redis.call('HSET', h, all[i], all[i + 1]:sub(1, 120) .. ARGV[7]) end
    end
  end
  for i = 8, #ARGV, 2 do redis.call('HSET', h, ARGV[i], ARGV[i + 1]) end
  return {'APPLIED'}
end
redis.register_function{function_name = 'sp1_close', callback = close, flags = {'allow-oom'}}
