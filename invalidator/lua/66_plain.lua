-- Purpose: what is owed to plain views (docs/protocol.md §2.10). Twin: invalidator/plain.py. Needs no header: whether a
-- shard is there the batch will find out, whose rows move after this.

-- sp1_owe: adds debts. A new one beyond the limit becomes its view's.
-- KEYS: owed. ARGV: version; heartbeat (position and snapshot) or ''; how many fields there may be; per debt: key, name of
--   its view's debt, position and stamps in one text.
-- Reply: OWED.
local function owe(KEYS, ARGV)
  local owed, beat, room = KEYS[1], ARGV[2], tonumber(ARGV[3]) - redis.call('HLEN', KEYS[1])
  for i = 4, #ARGV, 3 do
    local name, position = ARGV[i], ARGV[i + 2]:sub(1, 32)
    local fence = redis.call('HGET', owed, name)
    if not fence and room <= 0 then
      name = ARGV[i + 1]
      fence = redis.call('HGET', owed, name)
    end
    if not fence then room = room - 1 end
    local epoch, owed_epoch = position:sub(1, 8), (fence or ''):sub(2, 9)
    if owed_epoch < epoch then fence = '=' .. ZERO_POSITION end
    if owed_epoch <= epoch then redis.call('HSET', owed, name, merge(fence, position, ARGV[i + 2]:sub(33), beat)) end
  end
  return {'OWED'}
end
redis.register_function{function_name = 'sp1_owe', callback = owe, flags = {'allow-oom'}}

-- sp1_pay: removes debts that are still what was paid, and notes what views were swept for.
-- KEYS: owed. ARGV: version; number of debts; per debt: name, fence; per note: name, text.
-- Reply: PAID.
local function pay(KEYS, ARGV)
  local notes = 3 + 2 * tonumber(ARGV[2])
  for i = 3, notes - 1, 2 do
    if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
  end
  for i = notes, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  return {'PAID'}
end
redis.register_function{function_name = 'sp1_pay', callback = pay, flags = {'allow-oom'}}
