-- sp1_hear: takes one control record into a shard: compares the caller's rows, begins an epoch, closes scopes, fences a
-- key, counts heartbeats for closed scopes; all with the control row's own step. Every worker reads all control records:
-- one that another worker brought already changes nothing.
-- KEYS: header, fences, and the entry that is fenced, if any.
-- ARGV: version; control row's field, expected next, new row; offset of this record; position (32) of the heartbeat or
--   '', its stamp or that of an order for a key, the highest stamp that may be claimed now, its history; epoch that begins
--   or '' (the region then closes, once); stripe of the fenced key or ''; capture that sent the heartbeat (16); number of rows; per row that the caller owns: field,
--   expected next; number of scopes to close; per scope: field, control offset, digest of the view or ''.
-- Reply: outcome, 1 if a lost fence hash was re-made; REFUSED when the heartbeat is of an epoch that has not begun here.

-- Three in a row of one capture: what replaced ones publish late was committed who knows when.
local function count_heartbeat(h, position, offset, instance)
  local all = redis.call('HGETALL', h)
  for i = 1, #all, 2 do
    local scope = all[i + 1]
    if all[i]:sub(1, 2) == 's:' and not is_open(scope) and scope:sub(50, 65) <= offset and scope:sub(66, 66) < '3' then
      local count = scope:sub(67, 82) == instance and (tonumber(scope:sub(66, 66)) + 1) or 1
      redis.call('HSET', h, all[i], scope:sub(1, 65) .. count .. instance .. (count == 3 and position or ''))
    end
  end
end

-- Admits only who saw the order's own transaction, which was completed before the order was given. Its position is the
-- newest heartbeat's; without one the region is closed anyway.
local function fence_key(h, f, entry, stripe, stamp)
  local default, restored = default_fence(h, f)
  local newest = redis.call('HGET', h, 'b')
  redis.call('UNLINK', entry)
  if newest then
    local fence = redis.call('HGET', f, stripe) or default
    redis.call('HSET', f, stripe, merge(fence, newest:sub(1, 32), stamp, ''))
  end
  return restored
end

local function hear(KEYS, ARGV)
  local h, f, rows, restored = KEYS[1], KEYS[2], tonumber(ARGV[13]), 0
  local refused = unusable(h)
  if refused then return refused end
  local owned = {}
  for i = 14, 13 + 2 * rows, 2 do owned[#owned + 1] = {ARGV[i], ARGV[i + 1], ARGV[i + 1]} end
  local digest = ARGV[4]:sub(121)
  local outcome = compare(h, owned, digest, 'DISPLACED') or compare(h, {{ARGV[2], ARGV[3], ARGV[4]}}, digest, 'APPLIED')
  if outcome then return outcome end
  local position, offset = ARGV[6], ARGV[5]
  if ARGV[10] ~= '' then begin_epoch(h, f, ARGV[10], ARGV[9], ARGV[4]:sub(1, 16)) end
  local epoch = redis.call('HGET', h, 'e')
  if position:sub(1, 8) > epoch:sub(1, 8) then return {'REFUSED'} end
  close_scopes(h, f, ARGV, 14 + 2 * rows)
  if ARGV[11] ~= '' then restored = fence_key(h, f, KEYS[3], ARGV[11], ARGV[7]) end
  if position ~= '' and position:sub(1, 8) == epoch:sub(1, 8) then
    if #epoch == 9 then redis.call('HSET', h, 'e', epoch .. ARGV[9]) end
    local newest = redis.call('HGET', h, 'b')
    if not newest or newest:sub(1, 32) < position then  -- one that a paused capture publishes late counts for nothing
      redis.call('HSET', h, 'b', position .. ARGV[7] .. ARGV[8])
      count_heartbeat(h, position, offset, ARGV[12])
    end
  end
  advance(h, ARGV[2], ARGV[4])
  return {'APPLIED', restored}
end
redis.register_function{function_name = 'sp1_hear', callback = hear, flags = {'allow-oom'}}
