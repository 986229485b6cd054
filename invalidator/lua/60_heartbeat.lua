-- sp1_hear: takes one control record into a shard: compares the rows, counts heartbeats for closed scopes.
-- KEYS: header, fences. ARGV: version; control row's field, expected next, new row; offset of this record;
--   position (32) of the heartbeat or '', its stamp, the highest stamp that may be claimed now, its history;
--   per row that the caller owns: field, expected next.
-- Reply: outcome; REFUSED when the heartbeat is of an epoch that has not begun here.
local function hear(KEYS, ARGV)
  local h = KEYS[1]
  local refused = unusable(h)
  if refused then return refused end
  local owned = {}
  for i = 10, #ARGV, 2 do owned[#owned + 1] = {ARGV[i], ARGV[i + 1], ARGV[i + 1]} end
  local digest = ARGV[4]:sub(121)
  local outcome = compare(h, owned, digest) or compare(h, {{ARGV[2], ARGV[3], ARGV[4]}}, digest)
  if outcome then return outcome end
  local position, epoch = ARGV[6], redis.call('HGET', h, 'e')
  if position:sub(1, 8) > epoch:sub(1, 8) then return {'REFUSED'} end
  if position ~= '' and position:sub(1, 8) == epoch:sub(1, 8) then
    if #epoch == 9 then redis.call('HSET', h, 'e', epoch .. ARGV[9]) end
    local newest = redis.call('HGET', h, 'b')
    local is_newest = not newest or newest:sub(1, 32) < position
    if is_newest then redis.call('HSET', h, 'b', position .. ARGV[7] .. ARGV[8]) end
    local all = is_newest and redis.call('HGETALL', h) or {}  -- one that a paused capture publishes late counts for nothing
    for i = 1, #all, 2 do
      local scope = all[i + 1]
      if all[i]:sub(1, 2) == 's:' and not is_open(scope) and scope:sub(50, 65) <= ARGV[5] and scope:sub(66, 66) < '3' then
        local count = tonumber(scope:sub(66, 66)) + 1
        redis.call('HSET', h, all[i], scope:sub(1, 65) .. count .. (count == 3 and position or ''))
      end
    end
  end
  advance(h, ARGV[2], ARGV[4])
  return {'APPLIED'}
end
redis.register_function{function_name = 'sp1_hear', callback = hear, flags = {'allow-oom'}}
