-- Purpose: what a proof covers and what a fence admits. Twin: invalidator/guard.py.
-- Texts are fixed-width lower-case hexadecimal and compare as they sort (docs/protocol.md).
-- seen: p xmin xmax running... (primary), s xmin replay-LSN (standby). fence: = or -, position, stamps.
local VERSION = '1'
local ZERO_STAMP = '0000000000000000'
local ZERO_POSITION = ZERO_STAMP .. ZERO_STAMP
local HEAD_BYTES, PROOF_BYTES = 104, 360
local EXACT_BYTES = 8 * 16
local SLICE = 1000  -- arguments of one call: Lua's stack holds some thousands; even, as pairs are sliced too

local function larger(a, b) if a > b then return a end return b end

local function covers(seen, stamp, position)
  if stamp < seen:sub(2, 17) then return true end
  local kind = seen:sub(1, 1)
  if kind == 's' then return position:sub(9, 24) < seen:sub(18, 33) end
  if kind ~= 'p' or stamp >= seen:sub(18, 33) then return false end
  for i = 34, #seen, 16 do
    if seen:sub(i, i + 15) == stamp then return false end
  end
  return true
end

local function covers_all(seen, stamps, position)
  for i = 1, #stamps, 16 do
    if not covers(seen, stamps:sub(i, i + 15), position) then return false end
  end
  return true
end

local function admits(fence, seen)
  local position, stamps = fence:sub(2, 33), fence:sub(34)
  if fence:sub(1, 1) == '=' then return covers_all(seen, stamps, position) end
  local low, high = stamps:sub(1, 16), stamps:sub(17, 32)
  if high < seen:sub(2, 17) then return true end
  if seen:sub(1, 1) ~= 'p' then return covers(seen, high, position) end
  if high >= seen:sub(18, 33) then return false end
  for i = 34, #seen, 16 do
    local running = seen:sub(i, i + 15)
    if low <= running and running <= high then return false end
  end
  return true
end
