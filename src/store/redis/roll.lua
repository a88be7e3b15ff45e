-- What a node of a ring knows of the list that it belongs to, and the steps by which it comes to belong to another
-- one, each done at once. src/store/ring/install.rs says in which order, and why.
--
-- KEYS   what it knows (a hash); and to take over the past of a key, that key's record and events, and the index
-- ARGV   the step, who takes it, and what is handed to it
--
-- 'layout'        how the rest is kept
-- 'list'          the names of the nodes of its list
-- 'open'          the stamp of that list, once keys are given out by it
-- 'for'           the same as long as the node is closed, to be opened for that list
-- 'by', 'since'   who closed it, and when he was heard of last
-- 'was'           what it was then: open for the list with this stamp, 'left', 'closed' by somebody else, or 'blank'
-- 'old:STAMP'     the names of a list by which keys may still be given out, or be held
-- 'left'          the names of the list that it was taken out for, if it belongs to none

local node = KEYS[1]
local step, me = ARGV[1], ARGV[2]

local LAYOUT = 1
local KEPT = 30 * 86400     -- seconds, as in the law

-- Servers of different age wrap the words of a refused command differently, and none names the command.
local function call(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) == 'table' and reply.err then error('[[' .. command .. ' ' .. reply.err .. ']]', 0) end
  return reply
end

local time = call('TIME')
local now = time[1] * 1000000 + time[2]

local function int(number) return string.format('%.0f', number) end

local known = {}
local raw = call('HGETALL', node)
for at = 1, #raw, 2 do known[raw[at]] = raw[at + 1] end
if tonumber(known.layout or LAYOUT) > LAYOUT then return {'newer', known.layout} end

-- What became of the step, the clock, and what the node knew before it.
local function told(word) return {word, int(now), raw} end

local function keep_only(...)
  local kept = {layout = true, by = true}
  for _, field in ipairs({...}) do kept[field] = true end
  for field in pairs(known) do
    if not kept[field] then call('HDEL', node, field) end
  end
end

if step == 'look' then return told('done') end

if step == 'close' then
  local patience, stamp, list = tonumber(ARGV[3]), ARGV[4], ARGV[5]
  if known['for'] and known.by == me then return told('done') end
  -- Whoever was not heard of for long is dead, or too slow to be waited for. A clock that was set back is no excuse.
  local since = tonumber(known.since or 0)
  if known['for'] and since <= now and now - since < patience then return told('busy') end
  local last = known.open or known['for']
  if last then call('HSET', node, 'old:' .. last, known.list) end
  local was = known.open or known['for'] and 'closed' or known.left and 'left' or 'blank'
  call('HDEL', node, 'open')
  call('HSET', node, 'layout', LAYOUT, 'for', stamp, 'list', list, 'by', me, 'since', int(now), 'was', was)
  return told('done')
end

if known.by ~= me then return told('taken') end

if step == 'open' then
  if known.open then return told('done') end
  call('HSET', node, 'open', known['for'])
  keep_only('list', 'open')
  return told('done')
end

if step == 'leave' then
  if not known['for'] then return told(known.left and 'done' or 'taken') end
  call('HSET', node, 'left', known.list)
  keep_only('left')
  return told('done')
end

if not known['for'] then return told('taken') end

if step == 'adopt' then
  local record, events, index = KEYS[2], KEYS[3], KEYS[4]
  local key, fence, last = ARGV[3], tonumber(ARGV[4]), 5 + tonumber(ARGV[5])
  -- What is here may be what was left here long ago, or newer.
  if tonumber(call('HGET', record, 'fence') or 0) < fence then
    call('HSET', record, unpack(ARGV, 6, last))
    call('DEL', events)
    if #ARGV > last then call('RPUSH', events, unpack(ARGV, last + 1)) end
    for _, part in ipairs({record, events}) do call('EXPIRE', part, KEPT) end
    call('ZADD', index, int(now), key)
    call('EXPIRE', index, KEPT)
  end
elseif step == 'keep' then
  call('HSET', node, 'since', int(now))
elseif step == 'undo' then
  if known.was == 'closed' then
    -- Whoever did that may be dead, so nobody has to wait for us, too.
    call('HSET', node, 'since', 0)
  elseif known.was == 'left' then
    keep_only('left')
  elseif known.was == 'blank' then
    call('DEL', node)
  else
    call('HSET', node, 'open', known.was, 'list', known['old:' .. known.was])
    keep_only('list', 'open')
  end
end
return told('done')
