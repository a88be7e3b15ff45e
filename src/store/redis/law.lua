-- The law of leases (src/model/law.rs) for one key, done by the server in one step. The same words are used
-- for the same things; tests/redis/oracle.rs plays both and compares.
--
-- KEYS   record (a hash), queue (leases by ticket), waiters (lease to JSON), life (leases by the end of their
--        last sign of life), events (newest first), the prefix of the lists that wake somebody, the index, and,
--        where the server is one of several that vote, what it knows of itself (a hash); or, to
--        renew and to look while a cluster moves the slot, the record alone: some of the others may be here and some there, and
--        then no script may touch them; and in a ring, last of all, what the node knows of its list (roll.lua)
-- ARGV   what to do, in a ring with the stamp of the caller's list behind a blank; the clock of a test or ''; the key, and
--        what is handed to the operation
--
-- The record has a field 'h:LEASE' for each hold and 'o:LEASE' for each waiter who could take the key now:
-- since when. Numbers that cjson would round (14 digits) are texts; what only people read is passed through as
-- text. Only fields that changed are written.

local op, stamp = ARGV[1]:match('^(%l+) ?(%x*)$')
local ring = stamp ~= '' and table.remove(KEYS)
local record, queue, waiters, life, events, wake, index, node = unpack(KEYS)
local clock, key = ARGV[2], ARGV[3]

local LAYOUT = 1
local OFFER = 1000000       -- microseconds, as in the model
local OFFERS = 16           -- at once, as in the model
local AHEAD = 10000000      -- microseconds, as in the model
local MAX_EVENTS = 32
local KEPT = 30 * 86400     -- seconds that a key is kept after its last lease; the clock in a fence makes that harmless
local BATCH = 1000          -- arguments of one command; Lua has room for a few thousand
local WAKE_KEPT = 60        -- seconds that a wake-up waits for somebody whose connection is away

-- Servers of different age wrap the words of a refused command differently, and none names the command.
local function call(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) == 'table' and reply.err then error('[[' .. command .. ' ' .. reply.err .. ']]', 0) end
  return reply
end

local function int(number) return string.format('%.0f', number) end

local now = tonumber(clock)
if not now then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- A node of a ring gives out keys by the list for which it is open. Whoever has another one may do what he likes with a
-- lease that is here, be it his own or not; but what is not here is elsewhere. A node that knows no list has no lease.
local elsewhere
if ring then
  local open, old, known = unpack(call('HMGET', ring, 'open', 'old:' .. stamp, 'layout'))
  if open ~= stamp then
    if op == 'acquire' or op == 'look' and not known or known and not old then elsewhere = {'ring', call('HGETALL', ring)} end
    if op == 'acquire' then return elsewhere end
  end
end

-- What is there --------------------------------------------------------------------------------------------

local fields, packed, offered = {}, {}, {}
local changed, gone, noted, counts = {}, {}, {}, {}

local raw = call('HGETALL', record)
for at = 1, #raw, 2 do
  local kind, lease = raw[at]:sub(1, 2), raw[at]:sub(3)
  if kind == 'h:' then
    packed[lease] = raw[at + 1]
  elseif kind == 'o:' then
    offered[lease] = tonumber(raw[at + 1])
  else
    fields[raw[at]] = raw[at + 1]
  end
end

-- Nothing is known of how a newer one keeps its holds.
local layout = tonumber(fields.layout or LAYOUT)
if layout > LAYOUT then return {'newer', int(layout)} end
local fence = tonumber(fields.fence or 0)
-- A record that was evicted may have left its queue, whose tickets must not recur.
local last_ticket = tonumber(fields.last_ticket or queue and call('ZRANGE', queue, -1, -1, 'WITHSCORES')[2] or 0)

if op == 'look' then
  if #raw == 0 then return elsewhere or {'none'} end
  if not queue then return {'record', int(now), raw, {}, {}, {}, {}} end
  return {'record', int(now), raw, call('ZRANGE', queue, 0, -1, 'WITHSCORES'), call('HGETALL', waiters),
    call('ZRANGE', life, 0, -1, 'WITHSCORES'), call('LRANGE', events, 0, -1), elsewhere and elsewhere[2]}
end

local holds = {}
for lease, text in pairs(packed) do
  local hold = cjson.decode(text)
  hold.lease, hold.levels = lease, hold.levels or {}
  holds[#holds + 1] = hold
end
table.sort(holds, function(one, other) return tonumber(one.fence) < tonumber(other.fence) end)

-- Small things ---------------------------------------------------------------------------------------------

local function find(lease)
  for at, hold in ipairs(holds) do
    if hold.lease == lease then return hold, at end
  end
end

local function find_level(id)
  for at, hold in ipairs(holds) do
    for place, level in ipairs(hold.levels) do
      if level.id == id then return hold, at, level, place end
    end
  end
end

local function is_before(time) return time ~= nil and now < tonumber(time) end

-- When a hold ends unless it is renewed.
local function ends_at(hold)
  local last = 0
  for _, level in ipairs(hold.levels) do last = math.max(last, tonumber(level['until'])) end
  if hold.hold_until and not hold.revoked then last = math.max(last, tonumber(hold.hold_until)) end
  return last
end

-- A hold as it is kept. An empty list would come out as an object.
local function encode(hold)
  local kept = {}
  for name, value in pairs(hold) do kept[name] = value end
  kept.lease = nil
  if #hold.levels == 0 then kept.levels = nil end
  return cjson.encode(kept)
end

-- Seconds to keep what belongs to the key: long after the end of what is held, be that far away.
local function kept_for()
  local last = now
  for _, hold in ipairs(holds) do last = math.max(last, ends_at(hold)) end
  return int(KEPT + math.ceil((last - now) / 1000000))
end

local function count(what) counts[what] = (counts[what] or tonumber(fields[what] or 0)) + 1 end

local function note(kind, hold, since, ending, by, at)
  at = at or now
  noted[#noted + 1] = cjson.encode({at = int(at), kind = kind, lease = hold.lease:sub(1, 8), fence = hold.fence,
    info = hold.info, micros = int(math.max(at - tonumber(since), 0)), ending = ending, by = by})
end

local function tell(list, word)
  call('RPUSH', wake .. list, word)
  call('EXPIRE', wake .. list, WAKE_KEPT)
end

-- Ends a hold. The fence rises, so that one read during the hold does not match after it.
local function finish(at)
  local hold = table.remove(holds, at)
  changed['h:' .. hold.lease] = nil
  gone[#gone + 1] = 'h:' .. hold.lease
  fence = fence + 1
  if hold.revoked then tell('end:' .. hold.lease, 'ended') end
end

local function leave_queue(lease)
  call('ZREM', queue, lease)
  call('HDEL', waiters, lease)
  call('ZREM', life, lease)
  call('DEL', wake .. lease)
  if offered[lease] then
    offered[lease] = nil
    gone[#gone + 1] = 'o:' .. lease
  end
end

-- Who fits whom --------------------------------------------------------------------------------------------

local function add(crowd, mode)
  crowd.count = crowd.count + 1
  crowd.shared = crowd.shared and mode == 'shared'
  crowd.slots = crowd.slots and type(mode) == 'table'
  if crowd.slots then crowd.size = math.min(crowd.size, mode.slots) end
end

local function fits(crowd, mode)
  if mode == 'exclusive' then return crowd.count == 0 end
  if mode == 'shared' then return crowd.shared end
  return crowd.slots and crowd.count < math.min(crowd.size, mode.slots)
end

-- Those in the queue who fit all holders and all ahead of them, which are the first ones, at most so many and up to
-- the last who matters; then the one who comes next; and the crowd that a newcomer would have to fit if there is
-- none. Reads no further.
local function line_up(most, last)
  local crowd = {count = 0, shared = true, slots = true, size = math.huge}
  for _, hold in ipairs(holds) do add(crowd, hold.mode) end
  local fit, from = {}, 0
  while true do
    local some = call('ZRANGE', queue, from, from + math.min(#fit, BATCH - 1))
    if #some == 0 then return fit, nil, crowd end
    if crowd.count > 0 and not crowd.shared and not crowd.slots then return fit, some[1], crowd end
    for at, waiter in ipairs(call('HMGET', waiters, unpack(some))) do
      local mode = waiter and cjson.decode(waiter).mode
      if not mode then
        leave_queue(some[at])
        return line_up(most, last)
      end
      if #fit == most or not fits(crowd, mode) then return fit, some[at], crowd end
      add(crowd, mode)
      fit[#fit + 1] = some[at]
      if some[at] == last then return fit, nil, crowd end
    end
    from = #fit
  end
end

-- The operations -------------------------------------------------------------------------------------------

-- Drops what has ended. The caller itself shows its life by calling, and takes an offer late rather than never.
local function prune(caller)
  local at = 1
  while at <= #holds do
    local hold = holds[at]
    local was_cooling = #hold.levels == 0
    local last = was_cooling and tonumber(hold.hold_until or now) or 0
    for _, level in ipairs(hold.levels) do last = math.max(last, tonumber(level['until'])) end
    for place = #hold.levels, 1, -1 do
      if not is_before(hold.levels[place]['until']) then
        table.remove(hold.levels, place)
        changed['h:' .. hold.lease] = hold
      end
    end
    if #hold.levels > 0 then
      at = at + 1
    else
      local kept = is_before(hold.hold_until) and not hold.revoked
      if not was_cooling then count('expiries') end
      if not (was_cooling and kept) then
        -- Nobody may have looked for long.
        note(was_cooling and 'cooled' or 'expired', hold, hold.granted_at, nil, nil, math.min(last, now))
      end
      if kept then at = at + 1 else finish(at) end
    end
  end
  for lease, since in pairs(offered) do
    if lease ~= caller and since + OFFER <= now then leave_queue(lease) end
  end
  for _, lease in ipairs(call('ZRANGEBYSCORE', life, '-inf', int(now))) do
    if lease ~= caller then leave_queue(lease) end
  end
end

local function granted(hold)
  return {'granted', hold.fence, #hold.levels, int(math.max(tonumber(hold.granted_at) - tonumber(hold.asked_at), 0))}
end

local function next_ticket()
  last_ticket = last_ticket + 1
  return int(last_ticket)
end

local function later(span) return int(now + tonumber(span)) end

local function enter_again(ask)
  local hold = find(ask.lease)
  if not hold or #hold.levels == 0 or hold.revoked then return {'refused', 'lost'} end
  local inner = ask.mode
  if ask.if_fence and ask.if_fence ~= int(fence) then return {'refused', 'fence', int(fence)} end
  local contained = hold.mode == 'exclusive' or hold.mode == inner
    or type(hold.mode) == 'table' and type(inner) == 'table'
  if not contained then return {'refused', 'narrower', cjson.encode({mode = hold.mode})} end
  if #hold.levels > tonumber(ask.max_reentry) then return {'refused', 'too deep', ask.max_reentry} end
  hold.levels[#hold.levels + 1] = {id = ask.level, ticket = next_ticket(), ['until'] = later(ask.ttl)}
  if ask.min_hold ~= '0' then
    hold.hold_until = int(math.max(tonumber(hold.hold_until or 0), now + tonumber(ask.min_hold)))
  end
  changed['h:' .. hold.lease] = hold
  return granted(hold)
end

local function grant(ask, ticket)
  local asked_at = int(now)
  if ticket then
    asked_at = cjson.decode(call('HGET', waiters, ask.lease)).asked_at
    leave_queue(ask.lease)
  end
  -- A counter alone repeats itself after a failover or a restored snapshot; the clock does not.
  local own = tonumber(ask.fence or math.max(fence + 1, now))
  fence = math.max(fence, own)
  local hold = {lease = ask.lease, mode = ask.mode, fence = int(own), granted_at = int(now), asked_at = asked_at,
    levels = {{id = ask.level, ticket = ticket or next_ticket(), ['until'] = later(ask.ttl)}},
    attended = ask.attended, revoked = false, info = ask.info}
  if ask.min_hold ~= '0' then hold.hold_until = later(ask.min_hold) end
  holds[#holds + 1] = hold
  changed['h:' .. ask.lease] = hold
  count('grants')
  note('granted', hold, asked_at)
  return granted(hold)
end

-- Whether the fence is not the expected one.
local function contradicts(ask)
  if not ask.if_fence then return false end
  if ask.fence then return tonumber(ask.if_fence) < fence end
  return ask.if_fence ~= int(fence)
end

-- Why the record cannot have a proposed fence.
local function objection(ask)
  local ahead = tonumber(ask.fence) - now
  if ahead >= AHEAD then return {'refused', 'ahead', int(ahead)} end
  if not ask.again and tonumber(ask.fence) <= fence then return {'refused', 'fence', int(fence)} end
end

-- The ticket of one who waits, and whether it fits all holders and all who wait ahead of it.
local function admits(ask)
  if ask.fence then
    -- Nodes differ in who came first, and none must wait for another one.
    local ticket = call('ZSCORE', queue, ask.lease) or nil
    local crowd = {count = 0, shared = true, slots = true, size = math.huge}
    for _, hold in ipairs(holds) do add(crowd, hold.mode) end
    return ticket, fits(crowd, ask.mode) and (ask.again or ticket or call('ZCARD', queue) == 0)
  end
  local fit, misfit, crowd = line_up(nil, ask.lease)
  local ticket = (#fit > 0 or misfit) and call('ZSCORE', queue, ask.lease) or nil
  local admitted = not ticket and not misfit and fits(crowd, ask.mode)
  for _, lease in ipairs(fit) do admitted = admitted or lease == ask.lease end
  return ticket, admitted
end

local function acquire(ask)
  local hold = find_level(ask.level)
  if hold then
    -- Written once more, so that WAIT is about it.
    changed['h:' .. hold.lease] = hold
    return granted(hold)
  end
  hold = find(ask.lease)
  if ask.again and hold then
    -- Takes over a level of a lease that others have already.
    hold.levels[#hold.levels + 1] = {id = ask.level, ticket = next_ticket(), ['until'] = later(ask.ttl)}
    changed['h:' .. hold.lease] = hold
    return granted(hold)
  end
  if ask.level ~= ask.lease and not ask.again then return enter_again(ask) end
  -- Its first level has ended and other levels or the cooling go on: a late echo of its request.
  if hold then return {'refused', 'lost'} end
  if contradicts(ask) then return {'refused', 'fence', int(fence)} end
  local ticket, admitted = admits(ask)
  if admitted and not (ask.if_fence and #holds > 0) then
    return ask.fence and objection(ask) or grant(ask, ticket and int(ticket))
  end
  -- The fence changes with whoever comes first in the queue, so to wait for an old one is in vain.
  if ask.good_for == '0' or ask.if_fence then
    if ticket then leave_queue(ask.lease) end
    local busy = {'busy', call('ZCARD', queue), int(now)}
    for _, other in ipairs(holds) do
      busy[#busy + 1], busy[#busy + 2] = other.lease, encode(other)
    end
    return busy
  end
  if not ticket then
    call('ZADD', queue, next_ticket(), ask.lease)
    call('HSET', waiters, ask.lease, cjson.encode({mode = ask.mode, asked_at = int(now), info = ask.info}))
    for _, key in ipairs({queue, waiters}) do call('EXPIRE', key, KEPT) end
  end
  call('ZADD', life, later(ask.good_for), ask.lease)
  call('EXPIRE', life, KEPT)
  return {'queued', call('ZRANK', queue, ask.lease)}
end

-- Extends a level; never shortens it, and never brings back one that has ended.
local function renew(id, ttl)
  local hold, _, level = find_level(id)
  if not hold then return {'not yours'} end
  if hold.revoked then return {'revoked'} end
  level['until'] = int(math.max(tonumber(level['until']), now + tonumber(ttl)))
  changed['h:' .. hold.lease] = hold
  return {'until', level['until']}
end

-- Leaves the queue, or takes off one level; the last one ends the hold.
local function release(id, ending)
  if call('ZSCORE', queue, id) then
    leave_queue(id)
    return {'unqueued'}
  end
  local hold, at, _, place = find_level(id)
  if not hold then return {'not yours'} end
  table.remove(hold.levels, place)
  changed['h:' .. hold.lease] = hold
  if hold.revoked then call('DEL', wake .. id) end
  if #hold.levels > 0 then return {'left'} end
  note('released', hold, hold.granted_at, ending ~= '' and ending or nil)
  -- Without an ending there was no command, and so nothing to keep others out for.
  if ending ~= '' and is_before(hold.hold_until) and not hold.revoked then return {'cooling'} end
  finish(at)
  return {'freed'}
end

-- Takes back what was asked for with a proposal that most nodes did not agree to: the key was not held.
local function withdraw(lease)
  local hold = find(lease)
  local answer = release(lease, '')
  if answer[1] ~= 'freed' then return answer end
  local kept = {}
  for _, text in ipairs(call('LRANGE', events, 0, -1)) do
    local event = cjson.decode(text)
    if event.lease ~= lease:sub(1, 8) or event.fence ~= hold.fence then kept[#kept + 1] = text end
  end
  call('DEL', events)
  if #kept > 0 then
    call('RPUSH', events, unpack(kept))
    call('EXPIRE', events, KEPT)
  end
  noted[#noted] = nil
  counts.grants = (counts.grants or tonumber(fields.grants or 1)) - 1
  return answer
end

-- Tells attended holders to give the key back, or with force takes it from them; a lease that nobody attends to,
-- or that is cooling, goes at once. The events keep who did it.
local function unlock(force, by, first)
  local ended, told = 0, 0
  for number = first, #ARGV do
    local lease = ARGV[number]
    local hold, at = find(lease)
    if hold then
      local word = 'revoked'
      if force or not hold.attended or #hold.levels == 0 then
        word = 'evicted'
        note('evicted', hold, hold.granted_at, nil, by)
        count('evictions')
        finish(at)
        ended = ended + 1
      else
        if not hold.revoked then
          hold.revoked = true
          changed['h:' .. lease] = hold
          note('revoked', hold, hold.granted_at, nil, by)
        end
        told = told + 1
      end
      for _, level in ipairs(hold.levels) do tell(level.id, word) end
    end
  end
  return {'unlocked', ended, told}
end

-- A node that votes knows since when it has been there without a break, and how long leases live that others may
-- have given meanwhile: for so long it may have forgotten one when it starts. Whoever counts the votes judges that. And as
-- long as a lease may live that one list of nodes agreed to, it votes with no other one: their majorities need not meet.
local function note_tenure(ttl, list)
  local known, longest = {}, 0
  local all = call('HGETALL', node)
  for at = 1, #all, 2 do known[all[at]] = all[at + 1] end
  local listed = tonumber(known.listed or 0)
  if list and known.list and known.list ~= list and listed > now then return end
  list = list or known.list
  if list then
    call('HSET', node, 'list', list, 'listed', int(math.max(known.list == list and listed or 0, now + ttl)))
  end
  local run = call('INFO', 'server'):match('run_id:(%x+)')
  if known.run ~= run then
    local state = known.run and 'restarted' or 'new'
    call('HSET', node, 'run', run, 'since', int(now), 'state', state)
    known.run, known.since, known.state = run, now, state
  end
  for name, last in pairs(known) do
    local other = tonumber(name:match('^ttl:(%d+)$'))
    if other and tonumber(last) < now then
      call('HDEL', node, name)
    elseif other then
      longest = math.max(longest, other)
    end
  end
  call('HSET', node, 'ttl:' .. int(ttl), int(math.max(now + ttl, tonumber(known['ttl:' .. int(ttl)] or 0))))
  return run, known.founder or '', known.state, int(math.max(now - tonumber(known.since), 0)),
    int(math.max(longest, ttl))
end

local function in_batches(command, list)
  for from = 1, #list, BATCH do
    call(command, record, unpack(list, from, math.min(from + BATCH - 1, #list)))
  end
end

local function write_changes()
  local writes = {}
  for field, value in pairs(changed) do
    if type(value) == 'table' then
      value = encode(value)
    elseif type(value) == 'number' then
      value = int(value)
    end
    writes[#writes + 1], writes[#writes + 2] = field, value
  end
  if #writes > 0 and not fields.layout then writes[#writes + 1], writes[#writes + 2] = 'layout', int(LAYOUT) end
  in_batches('HDEL', gone)
  in_batches('HSET', writes)
  if #writes > 0 then call('EXPIRE', record, kept_for()) end
end

-- A server without memory lets a script go on that has written already, if that needed none. So a lease that is
-- there can be renewed and given back.
if op ~= 'acquire' and #raw > 0 then call('EXPIRE', record, kept_for()) end

if not queue then
  local _, _, level = find_level(ARGV[4])
  if level and not is_before(level['until']) then return {'not yours'} end
  local answer = renew(ARGV[4], ARGV[5])
  write_changes()
  return answer
end

local answer, caller, tenure
if op == 'acquire' then
  local ask = cjson.decode(ARGV[4])
  caller = ask.level
  if ask.fence then
    tenure = {note_tenure(math.max(tonumber(ask.ttl), tonumber(ask.min_hold)), ask.list)}
    if #tenure == 0 then return {'other list'} end
  end
  prune(caller)
  answer = acquire(ask)
else
  if node and op == 'renew' then note_tenure(tonumber(ARGV[5])) end
  prune(nil)
  if op == 'renew' then answer = renew(ARGV[4], ARGV[5]) end
  if op == 'release' then answer = release(ARGV[4], ARGV[5]) end
  if op == 'withdraw' then answer = withdraw(ARGV[4]) end
  if op == 'unlock' then answer = unlock(ARGV[4] == '1', ARGV[5], 6) end
end

-- Offers the key, and wakes exactly those whom that concerns --------------------------------------------------

local fit, watcher = line_up(OFFERS)
local still = {}
for _, lease in ipairs(fit) do
  still[lease] = true
  -- A clock that was set back does not prolong an offer.
  local since = math.min(offered[lease] or now, now)
  if offered[lease] ~= since then
    if not offered[lease] then tell(lease, 'turn') end
    offered[lease] = since
    changed['o:' .. lease] = since
  end
end
for lease in pairs(offered) do
  if not still[lease] then
    offered[lease] = nil
    gone[#gone + 1] = 'o:' .. lease
  end
end

-- The first one to whom the key is not offered watches for the instant at which something may end that nobody
-- tells of. It hears of an earlier one, and looks itself whether there is a later one.
if watcher or #fit > 0 then
  local next = math.huge
  for _, hold in ipairs(holds) do next = math.min(next, ends_at(hold)) end
  for _, since in pairs(offered) do next = math.min(next, since + OFFER) end
  local was = tonumber(fields.next or math.huge)
  local named = next < math.huge and int(next) or ''
  if next == math.huge then
    if fields.next then gone[#gone + 1] = 'next' end
  elseif next ~= was then
    changed.next = named
  end
  local ticket = watcher and tonumber(call('ZSCORE', queue, watcher)) or 0
  local is_new = ticket > tonumber(fields.told or 0)
  if is_new then changed.told = int(ticket) end
  -- One who waits for several nodes may be asleep here while it asks.
  if watcher and (watcher ~= caller or tenure) and (is_new or next < was) then
    tell(watcher, 'watch ' .. named .. ' ' .. int(now))
  end
  if answer[1] == 'queued' then
    -- While somebody is offered the key, those behind the watcher look, too, whether it is taken.
    answer[3], answer[4] = int(now), (watcher == caller or #fit > 0) and named or ''
    answer[5] = watcher == caller and 1 or 0
  end
end

-- Writes what changed ----------------------------------------------------------------------------------------

if fence ~= tonumber(fields.fence or 0) then changed.fence = int(fence) end
if last_ticket ~= tonumber(fields.last_ticket or 0) then changed.last_ticket = int(last_ticket) end
for what, value in pairs(counts) do changed[what] = int(value) end

-- What is refused for one of these leaves no lease behind.
if index and (answer[1] == 'granted' or answer[1] == 'until') then
  call('ZADD', index, int(now + (kept_for() - KEPT) * 1000000), key)
  call('ZREMRANGEBYSCORE', index, '-inf', int(now - KEPT * 1000000))
  call('EXPIRE', index, KEPT)
end
if #noted > 0 then
  call('LPUSH', events, unpack(noted, math.max(1, #noted - MAX_EVENTS + 1)))
  call('LTRIM', events, 0, MAX_EVENTS - 1)
  call('EXPIRE', events, KEPT)
end
write_changes()
if elsewhere and (answer[1] == 'not yours' or answer[1] == 'unlocked' and answer[2] + answer[3] == 0) then
  return elsewhere
end
-- For those who only look. Whoever may not tell them holds the key all the same.
redis.pcall('PUBLISH', wake:sub(1, -#'wake:' - 1) .. 'changes', key)
if tenure then return {'vote', answer, unpack(tenure)} end
return answer
