-- Purpose: the parts of a shard's header: format, scopes, entries under them. Twin: invalidator/guard.py.

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
