-- sp1_read: the entry, if it may be served, and how far this shard is.
-- KEYS: header, entry. ARGV: version; view; digest of the view.
-- Reply: HIT, MISS, CLOSED or COLD; watermark (position and milliseconds) or ''; the entry (HIT only).
local function read(KEYS, ARGV)
  local scopes = redis.call('HMGET', KEYS[1], 'v', 's:', 's:' .. ARGV[2], 'w')
  local version, region, view, watermark = scopes[1], scopes[2], scopes[3], scopes[4] or ''
  if version ~= VERSION then return {'COLD', ''} end
  if not is_open(region) or not is_open(view) then return {'CLOSED', watermark} end
  local entry = redis.call('GET', KEYS[2])
  if entry and readable(entry, region, view) and view:sub(34, 49) == ARGV[3] then return {'HIT', watermark, entry} end
  return {'MISS', watermark}
end
redis.register_function{function_name = 'sp1_read', callback = read, flags = {'no-writes'}}
