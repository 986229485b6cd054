-- Purpose: how a fence grows and shrinks, and how a lost one comes back. Twin: invalidator/guard.py.

-- Ascending union of two texts of stamps.
local function union(a, b)
  local all, known = {}, {}
  for _, text in ipairs({a, b}) do
    for i = 1, #text, 16 do
      local stamp = text:sub(i, i + 15)
      if not known[stamp] then known[stamp] = true; all[#all + 1] = stamp end
    end
  end
  table.sort(all)
  return table.concat(all)
end

-- beat: position and snapshot of a heartbeat, or ''. A snapshot that sees a record logged after the heartbeat was
-- taken after the heartbeat's own snapshot, so it sees what that saw: those stamps need no keeping.
local function merge(fence, position, stamps, beat)
  local exact, newest, kept = fence:sub(1, 1) == '=', fence:sub(2, 33), fence:sub(34)
  if beat ~= '' and position:sub(1, 8) == beat:sub(1, 8) and position > beat:sub(1, 32) then
    local seen = beat:sub(33)
    if not exact and admits(fence, seen) then exact, kept = true, '' end
    if exact then
      local uncovered = {}
      for i = 1, #kept, 16 do
        local stamp = kept:sub(i, i + 15)
        if not covers(seen, stamp, newest) then uncovered[#uncovered + 1] = stamp end
      end
      kept = table.concat(uncovered)
    end
  end
  newest = larger(newest, position)
  local all = union(kept, stamps)
  if exact and #all <= EXACT_BYTES then return '=' .. newest .. all end
  return '-' .. newest .. all:sub(1, 16) .. all:sub(-16)
end

-- Highest position of all rows, and highest stamp of those in this epoch: whatever was applied is not beyond.
local function newest_of_rows(h)
  local epoch = redis.call('HGET', h, 'e'):sub(1, 8)
  local position, stamp = ZERO_POSITION, ZERO_STAMP
  local all = redis.call('HGETALL', h)
  for i = 1, #all, 2 do
    if all[i]:sub(1, 2) == 't:' then
      position = larger(position, all[i + 1]:sub(73, 104))
      if all[i + 1]:sub(73, 80) == epoch then stamp = larger(stamp, all[i + 1]:sub(105, 120)) end
    end
  end
  return position, stamp
end

-- The fence of every stripe without a field. Lost with its hash: then any change of any row may be missing from it.
local function default_fence(h, f)
  local default = redis.call('HGET', f, '*')
  if default then return default end
  local position, stamp = newest_of_rows(h)
  default = '-' .. position .. ZERO_STAMP .. stamp
  redis.call('HSET', f, '*', default)
  return default
end
