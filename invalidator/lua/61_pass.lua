-- sp1_pass: every row has passed a heartbeat: the watermark moves to it, closed scopes whose third heartbeat it
-- includes open, a lost fence comes back. Refused, and nothing changes, while a row is before its barrier.
-- KEYS: header, fences. ARGV: version; position, stamp, milliseconds of the heartbeat, and the proof of what it saw; per
-- row: field, barrier.
-- Reply: outcome, number of scopes opened, 1 if a lost fence hash was re-made.
local function pass(KEYS, ARGV)
  local h, position = KEYS[1], ARGV[2]
  local refused = unusable(h)
  if refused then return refused end
  if redis.call('HGET', h, 'e'):sub(1, 8) ~= position:sub(1, 8) then return {'REFUSED'} end
  for i = 6, #ARGV, 2 do
    local row = redis.call('HGET', h, ARGV[i])
    if (row and row:sub(1, 16) or ZERO_STAMP) < ARGV[i + 1] then return {'REFUSED'} end
  end
  local _, restored = default_fence(h, KEYS[2])
  local watermark = redis.call('HGET', h, 'w')
  if not watermark or watermark:sub(1, 32) < position then redis.call('HSET', h, 'w', position .. ARGV[4] .. ARGV[5]) end
  -- A raise met a closed scope: its stamp may be beyond the heartbeat's, but not beyond the rows'.
  local newest, stamp = newest_of_rows(h)
  local fence = '-' .. larger(newest, position) .. ZERO_STAMP .. larger(stamp, ARGV[3])
  local opened, all = 0, redis.call('HGETALL', h)
  for i = 1, #all, 2 do
    local scope = all[i + 1]
    if all[i]:sub(1, 2) == 's:' and scope:sub(1, 1) == 'c' and scope:sub(66, 66) == '3' and scope:sub(83, 114) <= position then
      redis.call('HSET', h, all[i], 'o' .. raised(scope, position) .. scope:sub(34, 49) .. fence)
      opened = opened + 1
    end
  end
  return {'APPLIED', opened, restored}
end
redis.register_function{function_name = 'sp1_pass', callback = pass, flags = {'allow-oom'}}
