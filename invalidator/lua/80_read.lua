-- sp1_read: the entries that may be served, and how far this shard is.
-- KEYS: header, entries. ARGV: version; view; digest of the view.
-- Reply: OPEN, CLOSED or COLD; watermark (position, milliseconds, proof) or ''; epoch (number, method, history) or '';
-- OPEN only: per entry itself, or nil.
local function read(KEYS, ARGV)
  local scopes = redis.call('HMGET', KEYS[1], 'v', 's:', 's:' .. ARGV[2], 'w', 'e')
  local version, region, view, watermark, epoch = scopes[1], scopes[2], scopes[3], scopes[4] or '', scopes[5] or ''
  if version ~= VERSION then return {'COLD', '', ''} end
  if not is_open(region) or not is_open(view) then return {'CLOSED', watermark, epoch} end
  local reply = {'OPEN', watermark, epoch}
  for i = 2, #KEYS do
    local entry = redis.call('GET', KEYS[i])
    reply[i + 2] = entry and readable(entry, region, view) and view:sub(34, 49) == ARGV[3] and entry
  end
  return reply
end
redis.register_function{function_name = 'sp1_read', callback = read, flags = {'no-writes'}}
