-- Purpose: how a fence grows and shrinks. Twin: invalidator/guard.py.

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
