-- sp1_lease: who loads which keys now, so that the database is asked once for each, and not too often at a time. Leases
-- protect the database, most of all while Redis is full and takes no fills; nothing that is right depends on them.
-- KEYS: leases. ARGV: version; owner (16 characters); milliseconds (0: end the owner's leases); how many may live in this
--   shard; fields.
-- Reply: per field GRANTED, HELD by somebody, FULL: as many as may live do; or RELEASED.
-- A lease: when it ends, milliseconds of this server (12 digits); owner.

local function end_lease(leases, field, owner)
  local lease = redis.call('HGET', leases, field)
  if lease and lease:sub(13) == owner then redis.call('HDEL', leases, field) end
end

-- Ends what has run out, and counts the rest.
local function living(leases, now)
  local all, count = redis.call('HGETALL', leases), 0
  for i = 1, #all, 2 do
    if all[i + 1]:sub(1, 12) <= now then redis.call('HDEL', leases, all[i]) else count = count + 1 end
  end
  return count
end

local function lease(KEYS, ARGV)
  local leases, owner, ms, cap = KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
  local time, replies = redis.call('TIME'), {}
  local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local now, count = string.format('%012x', now_ms), redis.call('HLEN', leases)
  if ms > 0 and count + #ARGV - 4 > cap then count = living(leases, now) end
  for i = 5, #ARGV do
    local held = ms > 0 and redis.call('HGET', leases, ARGV[i])
    if ms == 0 then
      end_lease(leases, ARGV[i], owner)
      replies[i - 4] = 'RELEASED'
    elseif held and held:sub(1, 12) > now then
      replies[i - 4] = 'HELD'
    elseif count >= cap and not held then
      replies[i - 4] = 'FULL'
    else
      redis.call('HSET', leases, ARGV[i], string.format('%012x', now_ms + ms) .. owner)
      if not held then count = count + 1 end
      replies[i - 4] = 'GRANTED'
    end
  end
  return replies
end
redis.register_function{function_name = 'sp1_lease', callback = lease, flags = {'allow-oom'}}
