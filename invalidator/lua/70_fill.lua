-- sp1_fill: stores values that were read from the database, each if its read provably saw every change the fences know.
-- KEYS: header, fences, leases, entries. ARGV: version; history of the server that was read; view; digest of the view;
--   ttl_ms (0: none); owner of leases or ''; per entry: stripe, lead (4 characters), tail (as of, expires, lengths, seen,
--   view, key, payload). A lease of the owner's on the key ends, whatever becomes of the fill.
-- Reply: COLD; else per entry APPLIED, SUPERSEDED where one is there that this read does not outdate, REFUSED and why.

-- Whether a read with proof `seen` saw everything that the entry shows. Only of a primary's snapshot is it known that
-- the entry shows no more than its proof says: what the others name was read before the load began.
local function outdates(seen, head)
  local shown = proof(head)
  if not shown or shown == '' then return false end
  if head:sub(2, 2) == 'e' then return covers_all(seen, shown:sub(33), shown:sub(1, 32)) end
  return shown:sub(1, 1) == 'p' and seen:sub(1, 1) ~= 'g' and shown:sub(18, 33) <= seen:sub(2, 17)
end

-- A proof as far as it counts here: without commit positions in the stream a replay LSN proves nothing.
local function worth(seen, epoch)
  if seen:sub(1, 1) == 's' and epoch:sub(9, 9) ~= 'o' then return seen:sub(1, 17) .. ZERO_STAMP end
  return seen
end

-- nil, or why no entry of the view may come from a read with this proof.
local function objection(seen, ARGV, scopes, default)
  local epoch, region, view, newest = unpack(scopes)
  if not is_open(region) or not is_open(view) then return 'REFUSED closed' end
  if epoch:sub(10) ~= ARGV[2] then return 'REFUSED history' end
  if view:sub(34, 49) ~= ARGV[4] then return 'REFUSED digest' end
  if not newest or forged(seen, newest:sub(49, 64)) then return 'REFUSED forged' end
  if not default then return 'REFUSED lost' end
  if not admits(region:sub(50), seen) then return 'REFUSED region' end
  if not admits(view:sub(50), seen) then return 'REFUSED view' end
  return nil
end

-- The cache key that a tail names.
local function named(tail)
  local at = 37 + tonumber(tail:sub(25, 28), 16) + tonumber(tail:sub(29, 32), 16)
  return tail:sub(at, at - 1 + tonumber(tail:sub(33, 36), 16))
end

local function fill(KEYS, ARGV)
  local h, refused = KEYS[1], unusable(KEYS[1])
  if refused then return refused end
  local scopes = redis.call('HMGET', h, 'e', 's:', 's:' .. ARGV[3], 'b')
  local epoch, region, view = unpack(scopes)
  local stripes = {'*'}
  for at = 7, #ARGV, 3 do stripes[#stripes + 1] = ARGV[at] end
  local fences = fences_of(KEYS[2], stripes)
  local replies, last, seen, against, admitted = {}, nil, nil, nil, nil
  for i = 4, #KEYS do
    local key, stripe, tail = KEYS[i], ARGV[3 * i - 5], ARGV[3 * i - 3]
    local proven = tail:sub(37, 36 + tonumber(tail:sub(25, 28), 16))
    if proven ~= last then  -- entries of one batch come from few reads: each read is judged once
      last, seen, admitted = proven, worth(proven, epoch), {}
      against = objection(seen, ARGV, scopes, fences['*'])
    end
    local reply = against
    if not reply then
      local fence = fences[stripe] or fences['*']
      if admitted[fence] == nil then admitted[fence] = admits(fence, seen) end
      if not admitted[fence] then reply = 'REFUSED stripe' end
    end
    local head = not reply and redis.call('GETRANGE', key, 0, PROOF_BYTES - 1)
    if head and readable(head, region, view) and not outdates(seen, head) then reply = 'SUPERSEDED' end
    if not reply then
      local entry = ARGV[3 * i - 4] .. generation(region) .. generation(view) .. tail
      if ARGV[5] == '0' then redis.call('SET', key, entry) else redis.call('SET', key, entry, 'PX', ARGV[5]) end
    end
    replies[i - 3] = reply or 'APPLIED'
    if ARGV[6] ~= '' then end_lease(KEYS[3], named(tail), ARGV[6]) end
  end
  return replies
end
redis.register_function{function_name = 'sp1_fill', callback = fill}
