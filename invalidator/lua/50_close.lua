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

-- sp1_close: closes scopes and jumps rows, in one step.
-- KEYS: header, fences. ARGV: version; the offset from which heartbeats count anew when the control topic was made
--   again, else ''; digest that all rows take, or ''; number of scopes; per scope: field, control offset, digest of the
--   view or ''; per row that jumps: field, row.
-- Reply: APPLIED or COLD.
local function close(KEYS, ARGV)
  local h, f = KEYS[1], KEYS[2]
  local refused = unusable(h)
  if refused then return refused end
  if ARGV[2] ~= '' then
    local all = redis.call('HGETALL', h)
    for i = 1, #all, 2 do
      local scope = all[i + 1]
      if all[i]:sub(1, 2) == 's:' and not is_open(scope) then
        redis.call('HSET', h, all[i], scope:sub(1, 49) .. ARGV[2] .. NONE_COUNTED)
      end
    end
  end
  local at = close_scopes(h, f, ARGV, 4)
  if ARGV[3] ~= '' then
    local all = redis.call('HGETALL', h)
    for i = 1, #all, 2 do
      if all[i]:sub(1, 2) == 't:' then redis.call('HSET', h, all[i], all[i + 1]:sub(1, 120) .. ARGV[3]) end
    end
  end
  for i = at, #ARGV, 2 do redis.call('HSET', h, ARGV[i], ARGV[i + 1]) end
  return {'APPLIED'}
end
redis.register_function{function_name = 'sp1_close', callback = close, flags = {'allow-oom'}}
