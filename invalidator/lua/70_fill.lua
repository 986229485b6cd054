-- sp1_fill: stores a value that was read from the database, if the read provably saw every change the fences know.
-- KEYS: header, fences, entry. ARGV: version; history of the server that was read; view; digest of the view; stripe;
--   lead (4 characters); tail (as of, expires, lengths, seen, view, key, payload); ttl_ms (0: none).
-- Reply: APPLIED; REFUSED and why; SUPERSEDED when an entry is there that this read does not outdate; COLD.

-- Whether a read with proof `seen` saw everything that the entry shows. Only of a primary's snapshot is it known that
-- the entry shows no more than its proof says: what the others name was read before the load began.
local function outdates(seen, head)
  local shown = proof(head)
  if not shown or shown == '' then return false end
  if head:sub(2, 2) == 'e' then return covers_all(seen, shown:sub(33), shown:sub(1, 32)) end
  return shown:sub(1, 1) == 'p' and seen:sub(1, 1) ~= 'g' and shown:sub(18, 33) <= seen:sub(2, 17)
end

local function fill(KEYS, ARGV)
  local h, tail = KEYS[1], ARGV[7]
  local refused = unusable(h)
  if refused then return refused end
  local seen = tail:sub(37, 36 + tonumber(tail:sub(25, 28), 16))
  local scopes = redis.call('HMGET', h, 'e', 's:', 's:' .. ARGV[3], 'b')
  local epoch, region, view, newest = scopes[1], scopes[2], scopes[3], scopes[4]
  if not is_open(region) or not is_open(view) then return {'REFUSED', 'closed'} end
  if epoch:sub(10) ~= ARGV[2] then return {'REFUSED', 'history'} end
  if view:sub(34, 49) ~= ARGV[4] then return {'REFUSED', 'digest'} end
  if seen:sub(1, 1) == 's' and epoch:sub(9, 9) ~= 'o' then  -- without commit positions a replay LSN proves nothing
    seen = seen:sub(1, 17) .. ZERO_STAMP
  end
  if not newest or forged(seen, newest:sub(49, 64)) then return {'REFUSED', 'forged'} end
  local fences = redis.call('HMGET', KEYS[2], '*', ARGV[5])
  if not fences[1] then return {'REFUSED', 'lost'} end
  if not admits(region:sub(50), seen) then return {'REFUSED', 'region'} end
  if not admits(view:sub(50), seen) then return {'REFUSED', 'view'} end
  if not admits(fences[2] or fences[1], seen) then return {'REFUSED', 'stripe'} end
  local head = redis.call('GETRANGE', KEYS[3], 0, PROOF_BYTES - 1)
  if readable(head, region, view) and not outdates(seen, head) then return {'SUPERSEDED'} end
  local entry = ARGV[6] .. generation(region) .. generation(view) .. tail
  if ARGV[8] == '0' then redis.call('SET', KEYS[3], entry) else redis.call('SET', KEYS[3], entry, 'PX', ARGV[8]) end
  return {'APPLIED'}
end
redis.register_function{function_name = 'sp1_fill', callback = fill}
