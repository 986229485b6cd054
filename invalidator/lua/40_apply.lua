-- Purpose: apply one batch of records to one shard: raise, invalidate, refresh, merge fences, advance rows. Atomic.
-- Without rows it is a replay (docs/protocol.md, rule 12): whoever moves the rows merges its changes, or has.
-- KEYS: header, fences, invalidated entries, refreshed entries.
-- ARGV: version; heartbeat (position and snapshot) or ''; number of rows, raises, invalidations;
--   per row: field, expected next, new row; per raise: scope field, position and stamps;
--   number of scopes to close; per scope: field, control offset, digest of the view or '';
--   per invalidation: stripe, position and stamps in one text; per refresh: the same, view, lead, tail, ttl_ms (0: none).
-- Reply: outcome, entries unlinked, entries that stayed, entries written, 1 if a lost fence hash was re-made.

local function raise(h, epoch, field, position, stamps, beat)
  local scope = redis.call('HGET', h, field)
  if not scope then return end
  local rest = scope:sub(50)
  if is_open(scope) and position:sub(1, 8) == epoch then rest = merge(rest, position, stamps, beat) end
  redis.call('HSET', h, field, scope:sub(1, 1) .. raised(scope, position) .. scope:sub(34, 49) .. rest)
end

-- Whether a fill is proven to show all of these changes. Only a primary's snapshot is asked: in doubt, unlink.
local function stays(head, position, stamps, epoch)
  local seen = head:sub(2, 2) == 'f' and position:sub(1, 8) == epoch and proof(head)
  return seen and seen:sub(1, 1) == 'p' and covers_all(seen, stamps, position)
end

-- Whether an event wrote the entry, and not an older one: it shows this change, or what came after it.
local function shows(head, position)
  local seen = head:sub(2, 2) == 'e' and proof(head)
  return seen and seen:sub(1, 32) >= position
end

-- Whether nothing that its stripe has met is newer. A replay must be the newest itself: what the fence has not met yet,
-- it would not remember.
local function newest(fence, position, replay)
  local met = fence:sub(2, 33)
  return position == met or (not replay and position > met)
end

local function refresh(key, change, args, scopes, epoch, replay)
  local position, stamps, fence = change[2], change[3], change[4]
  local region, view = scopes('s:'), scopes('s:' .. args[1])
  local head = redis.call('GETRANGE', key, 0, PROOF_BYTES - 1)
  local allowed = is_open(region) and is_open(view) and position:sub(1, 8) == epoch
    and newest(fence, position, replay) and position >= region:sub(51, 82) and position >= view:sub(51, 82)
  if readable(head, region, view) then
    if head:sub(2, 2) == 'f' then
      if stays(head, position, stamps, epoch) then return 0, 1, 0 end
      return redis.call('UNLINK', key), 0, 0
    end
    if shows(head, position) then return 0, 1, 0 end
  end
  if not allowed then return redis.call('UNLINK', key), 0, 0 end
  local entry = args[2] .. generation(region) .. generation(view) .. args[3]
  if args[4] == '0' then redis.call('SET', key, entry) else redis.call('SET', key, entry, 'PX', args[4]) end
  return 0, 0, 1
end
