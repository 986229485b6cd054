-- Purpose: the parts of a shard's header: format, scopes, rows. Twin: invalidator/guard.py.

-- nil when the shard can be used; else the reply to give.
local function unusable(h)
  local version = redis.call('HGET', h, 'v')
  if not version then return {'COLD'} end
  if version ~= VERSION then return redis.error_reply('STALEPROOF shard has format ' .. version) end
  return nil
end

local function is_open(scope) return scope and scope:sub(1, 1) == 'o' end

local function generation(scope) return scope:sub(2, 33) end

-- The generation after a raise at `position`: always a larger one. The maximum would not do: a raise may be logged
-- before another and become visible after it, and what was filled between the two must die as well.
local function raised(scope, position)
  local old = generation(scope)
  return larger(position, old:sub(1, 24) .. string.format('%08x', tonumber(old:sub(25), 16) + 1))
end

-- Whether an entry with this head can be served under these scopes.
local function readable(head, region, view)
  return #head >= HEAD_BYTES and is_open(region) and is_open(view)
    and head:sub(5, 36) == generation(region) and head:sub(37, 68) == generation(view)
end

-- The proof of an entry, nil where it is longer than what was read.
local function proof(head)
  local length = tonumber(head:sub(93, 96), 16)
  if not length or #head < HEAD_BYTES + length then return nil end
  return head:sub(HEAD_BYTES + 1, HEAD_BYTES + length)
end

-- Compares rows with what the caller believes. rows: {field, expected next, new row}...; digest: the caller's views.
-- nil: all stand where expected. Else APPLIED (this batch is in already), REWIND or DISPLACED: a row that was moved by
-- a worker with other views may have passed what these views need.
local function compare(h, rows, digest)
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
      outcome = outcome or 'DISPLACED'
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
