-- Purpose: what a proof covers and what a fence admits. Twins: cdc/snapshots.py, invalidator/guard.py.
-- Texts are fixed-width lower-case hexadecimal and compare as they sort (docs/protocol.md).
-- seen: p xmin xmax running... (primary), s xmin replay-LSN (standby), g low high... (GTIDs; an origin is 4 digits).
-- fence: = or -, position, stamps.
local VERSION = '1'
local ZERO_STAMP = '0000000000000000'
local ZERO_POSITION = ZERO_STAMP .. ZERO_STAMP
local HEAD_BYTES, PROOF_BYTES = 104, 360
local EXACT_BYTES = 8 * 16
local SLICE = 1000  -- arguments of one call: Lua's stack holds some thousands; even, as pairs are sliced too

local function larger(a, b) if a > b then return a end return b end

-- Whether a read saw all of low..high, whichever exist, none logged after `position`.
local function covers_range(seen, low, high, position)
  local kind = seen:sub(1, 1)
  if kind == 'p' then
    if high < seen:sub(2, 17) then return true end
    if high >= seen:sub(18, 33) then return false end
    for i = 34, #seen, 16 do
      local running = seen:sub(i, i + 15)
      if low <= running and running <= high then return false end
    end
    return true
  end
  if kind == 's' then return high < seen:sub(2, 17) or position:sub(9, 24) < seen:sub(18, 33) end
  for i = 2, kind == 'g' and #seen or 0, 32 do
    if seen:sub(i, i + 15) <= low and high <= seen:sub(i + 16, i + 31) then return true end
  end
  return false
end

local function covers(seen, stamp, position) return covers_range(seen, stamp, stamp, position) end

local function covers_all(seen, stamps, position)
  for i = 1, #stamps, 16 do
    if not covers(seen, stamps:sub(i, i + 15), position) then return false end
  end
  return true
end

local function admits(fence, seen)
  local position, stamps = fence:sub(2, 33), fence:sub(34)
  if fence:sub(1, 1) == '=' then return covers_all(seen, stamps, position) end
  return covers_range(seen, stamps:sub(1, 16), stamps:sub(17, 32), position)
end

-- Whether a proof claims more than can exist now: a stamp beyond `limit`, of GTIDs one of the limit's origin.
local function forged(seen, limit)
  local kind = seen:sub(1, 1)
  for i = 2, kind == 'g' and #seen or 0, 32 do
    if seen:sub(i, i + 3) <= limit:sub(1, 4) and seen:sub(i + 16, i + 31) > limit then return true end
  end
  return kind ~= 'g' and (seen:sub(2, 17) > limit or (kind == 'p' and seen:sub(18, 33) > limit))
end
