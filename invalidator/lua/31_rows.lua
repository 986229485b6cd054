-- Purpose: the rows of a shard: compared with what a caller believes, moved on, and what a lost fence comes back from.
-- Twin: invalidator/guard.py.

-- Compares rows with what the caller believes. rows: {field, expected next, new row}...; digest: the caller's views;
-- ahead: what it means that a row is further than the end of this batch. nil: all stand where expected. Else APPLIED
-- (this batch is in already), REWIND, or DISPLACED: a row moved by a worker with other views may have passed what these
-- views need.
local function compare(h, rows, digest, ahead)
  local pending, done = 0, 0
  local outcome = nil
  for _, row in ipairs(rows) do
    local stored = redis.call('HGET', h, row[1])
    local planned = stored and stored:sub(121) or digest
    stored = stored and stored:sub(1, 16) or ZERO_STAMP
    if planned ~= digest and planned ~= ZERO_STAMP then
      outcome = 'DISPLACED'
    elseif stored == row[2] then
      pending = pending + 1
    elseif stored == row[3]:sub(1, 16) then
      done = done + 1
    elseif stored < row[2] then
      outcome = 'REWIND'
    else
      outcome = outcome or ahead
    end
  end
  if outcome then return {outcome} end
  if done == 0 then return nil end
  return {pending == 0 and 'APPLIED' or 'REWIND'}
end

-- Moves a row on. Its highest position and stamp never fall within an epoch.
local function advance(h, field, row)
  local old = redis.call('HGET', h, field)
  if old and old:sub(73, 80) >= row:sub(73, 80) then
    local stamp = old:sub(105, 120)
    if old:sub(73, 80) == row:sub(73, 80) then stamp = larger(stamp, row:sub(105, 120)) end
    row = row:sub(1, 72) .. larger(old:sub(73, 104), row:sub(73, 104)) .. stamp .. row:sub(121)
  end
  redis.call('HSET', h, field, row)
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

-- The fence of every stripe without a field, and 1 where it had to be re-made: its hash was lost, so any change of any
-- row may be missing from it.
local function default_fence(h, f)
  local default = redis.call('HGET', f, '*')
  if default then return default, 0 end
  local position, stamp = newest_of_rows(h)
  default = '-' .. position .. ZERO_STAMP .. stamp
  redis.call('HSET', f, '*', default)
  return default, 1
end
