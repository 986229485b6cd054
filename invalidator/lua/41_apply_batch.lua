-- Purpose: the batch function itself; its parts and its arguments are described in 40_apply.lua.
local function apply(KEYS, ARGV)
  local h, f, beat = KEYS[1], KEYS[2], ARGV[2]
  local refused = unusable(h)
  if refused then return refused end
  local at, rows = 6, {}
  for i = 1, tonumber(ARGV[3]) do rows[i] = {ARGV[at], ARGV[at + 1], ARGV[at + 2]}; at = at + 3 end
  local replay = #rows == 0
  local outcome = not replay and compare(h, rows, rows[1][3]:sub(121), 'DISPLACED') or nil
  if outcome then return outcome end
  local epoch = redis.call('HGET', h, 'e'):sub(1, 8)
  for _, row in ipairs(rows) do
    if row[3]:sub(73, 80) > epoch then return {'REFUSED'} end
  end
  local raises = at
  at = close_scopes(h, f, ARGV, at + 2 * tonumber(ARGV[4]))
  for i = raises, raises + 2 * tonumber(ARGV[4]) - 1, 2 do
    raise(h, epoch, ARGV[i], ARGV[i + 1]:sub(1, 32), ARGV[i + 1]:sub(33), beat)
  end
  -- What changes, and the fence that each change met.
  local invalidations, default, restored = tonumber(ARGV[5]), default_fence(h, f)
  local changes, stripes = {}, {}
  for i = 3, #KEYS do
    local text = ARGV[at]
    changes[i] = {text:sub(1, 4), text:sub(5, 36), text:sub(37)}
    if i > invalidations + 2 then changes[i].args = {ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]}; at = at + 4 end
    at = at + 1
    stripes[#stripes + 1] = text:sub(1, 4)
  end
  local fences = fences_of(f, stripes, default)
  local unlinked, kept, written = 0, 0, 0
  for i = 3, invalidations + 2 do
    local head = redis.call('GETRANGE', KEYS[i], 0, PROOF_BYTES - 1)
    if head ~= '' then
      local position = changes[i][2]
      if stays(head, position, changes[i][3], epoch) or (replay and shows(head, position)) then kept = kept + 1
      else unlinked = unlinked + redis.call('UNLINK', KEYS[i]) end
    end
  end
  local known = {}
  local function scopes(field)
    if known[field] == nil then known[field] = redis.call('HGET', h, field) or false end
    return known[field]
  end
  for i = invalidations + 3, #KEYS do
    changes[i][4] = fences[changes[i][1]]
    local u, k, w = refresh(KEYS[i], changes[i], changes[i].args, scopes, epoch, replay)
    unlinked, kept, written = unlinked + u, kept + k, written + w
  end
  if replay then return {'APPLIED', unlinked, kept, written, restored} end
  for i = 3, #KEYS do
    local stripe, position, stamps = changes[i][1], changes[i][2], changes[i][3]
    if position:sub(1, 8) == epoch then fences[stripe] = merge(fences[stripe], position, stamps, beat) end
  end
  keep_fences(f, fences)
  for _, row in ipairs(rows) do advance(h, row[1], row[3]) end
  return {'APPLIED', unlinked, kept, written, restored}
end
redis.register_function{function_name = 'sp1_apply', callback = apply, flags = {'allow-oom'}}
