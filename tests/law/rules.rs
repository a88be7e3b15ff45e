//! The rules of the law, each a question about one moment, so that a failure names the rule.

use std::collections::BTreeSet;

use dlock::model::{
    Answer, Event, EventKind, Grant, Hold, LeaseId, MAX_EVENTS, Mode, OFFER, Patience, Refusal, Released, Renewed,
    Role, Stamp, Unlocked, Waiter,
};

use super::world::{Act, Moment};

type Rule = fn(&Moment) -> bool;

macro_rules! rules {
    ($($rule:ident),* $(,)?) => { &[$((stringify!($rule), $rule as Rule)),*] };
}

const RULES: &[(&str, Rule)] = rules![
    holders_fit_together,
    a_lease_holds_or_waits_once,
    an_ended_lease_is_gone_and_stays_gone,
    nobody_loses_a_lease_before_its_end,
    the_named_end_is_the_end,
    a_cooling_key_stays_taken_until_its_time_and_no_longer,
    the_fence_rises_at_each_grant_and_each_end,
    all_levels_have_the_fence_of_the_grant,
    nobody_barges_in,
    who_fits_is_admitted_at_once,
    the_queue_is_first_come_first_served,
    a_waiter_keeps_what_it_came_with,
    who_shows_no_life_leaves_the_queue,
    who_lets_an_offer_lie_is_passed_over,
    offers_go_to_those_who_could_take_the_key,
    the_same_question_gets_the_same_answer,
    if_fence_takes_the_key_as_it_was_or_not_at_all,
    re_entry_needs_a_living_lease_and_has_a_limit,
    renewal_never_revives,
    renewal_never_shortens_nor_adds_up,
    a_revoked_lease_is_not_extended,
    a_release_takes_off_one_level_and_says_what_that_did,
    a_second_release_is_not_yours_and_changes_nothing,
    unlock_touches_only_what_it_names,
    the_counters_agree,
    the_events_tell_what_happened_and_stay_few,
    tickets_rise_and_never_recur,
    looking_again_shows_the_same,
];

/// The names of the rules that this moment breaks.
pub(super) fn broken(moment: &Moment) -> Vec<&'static str> {
    RULES.iter().filter(|(_, rule)| !rule(moment)).map(|(name, _)| *name).collect()
}

fn fit_together(modes: impl Iterator<Item = Mode>) -> bool {
    let modes: Vec<Mode> = modes.collect();
    let sizes = || modes.iter().map(|mode| if let Mode::Slots(size) = mode { size.get() as usize } else { 0 });
    modes.len() <= 1 || modes.iter().all(|mode| *mode == Mode::Shared) || sizes().all(|size| modes.len() <= size)
}

fn modes<'a>(holders: &'a [Hold], waiters: &'a [Waiter]) -> impl Iterator<Item = Mode> + 'a {
    holders.iter().map(|hold| hold.mode).chain(waiters.iter().map(|waiter| waiter.mode))
}

fn leases(waiters: &[Waiter]) -> Vec<LeaseId> {
    waiters.iter().map(|waiter| waiter.lease).collect()
}

fn has_level(hold: &Hold, id: LeaseId) -> bool {
    hold.levels.iter().any(|level| level.id == id)
}

fn holders_fit_together(m: &Moment) -> bool {
    fit_together(modes(&m.after.holders, &[]))
}

fn a_lease_holds_or_waits_once(m: &Moment) -> bool {
    let all = m.after.holders.iter().map(|hold| hold.lease).chain(leases(&m.after.queue));
    let levels: Vec<LeaseId> = m.after.holders.iter().flat_map(|hold| &hold.levels).map(|level| level.id).collect();
    let different: BTreeSet<LeaseId> = all.clone().collect();
    different.len() == all.count() && levels.iter().collect::<BTreeSet<_>>().len() == levels.len()
}

fn an_ended_lease_is_gone_and_stays_gone(m: &Moment) -> bool {
    let asked = |id| matches!(&m.act, Act::Acquire(ask, Answer::Granted(_)) if ask.level == id);
    m.after.holders.iter().all(|hold| match m.left.hold(hold.lease) {
        Some(was) => hold.levels.iter().all(|level| has_level(was, level.id) || asked(level.id)),
        None => asked(hold.lease) && hold.levels.len() == 1 && hold.levels[0].id == hold.lease,
    })
}

fn nobody_loses_a_lease_before_its_end(m: &Moment) -> bool {
    m.left.holders.iter().all(|was| {
        let Some(is) = m.after.hold(was.lease) else {
            return match &m.act {
                Act::Release(id, Released::Freed) => has_level(was, *id),
                Act::Unlock(named, ..) => named.contains(&was.lease),
                _ => false,
            };
        };
        let left = |id| matches!(m.act, Act::Release(level, Released::Left | Released::Cooling) if level == id);
        was.levels.iter().all(|level| has_level(is, level.id) != left(level.id))
    })
}

fn the_named_end_is_the_end(m: &Moment) -> bool {
    let mut record = m.after.clone();
    record.events.clear();
    let lasts = |lease, at| record.clone().seen(&m.world.at(at)).hold(lease).is_some();
    record.holders.iter().all(|hold| match hold.ends_at() {
        None => hold.levels.iter().any(|level| level.until.is_none()),
        Some(end) if end <= m.now() => !lasts(hold.lease, m.now()),
        Some(end) => !lasts(hold.lease, end) && lasts(hold.lease, Stamp::from_micros(end.micros() - 1)),
    })
}

fn a_cooling_key_stays_taken_until_its_time_and_no_longer(m: &Moment) -> bool {
    let min_hold = |lease| match &m.act {
        Act::Acquire(ask, Answer::Granted(_)) if ask.lease == lease && !ask.min_hold.is_zero() => {
            let known = m.left.hold(lease).is_some_and(|was| has_level(was, ask.level));
            (!known).then(|| m.now().after(ask.min_hold))
        }
        _ => None,
    };
    let until = |hold: &Hold| m.left.hold(hold.lease).and_then(|was| was.hold_until).max(min_hold(hold.lease));
    m.after.holders.iter().all(|hold| {
        let open = hold.hold_until.is_some_and(|end| m.now() < end) && !hold.revoked;
        hold.hold_until == until(hold) && (!hold.levels.is_empty() || open)
    })
}

fn the_fence_rises_at_each_grant_and_each_end(m: &Moment) -> bool {
    let ended = m.left.holders.iter().filter(|was| m.after.hold(was.lease).is_none()).count();
    let counted = m.left.fence.0 + u64::try_from(ended).expect("a count fits");
    match m.granted() {
        Some(hold) => hold.fence == m.after.fence && hold.fence.0 == (counted + 1).max(m.now().micros()),
        None => m.after.fence.0 == counted,
    }
}

fn all_levels_have_the_fence_of_the_grant(m: &Moment) -> bool {
    let kept = m.kept().all(|(was, is)| (was.fence, was.granted_at, was.mode) == (is.fence, is.granted_at, is.mode));
    let Act::Acquire(ask, Answer::Granted(Grant { fence, depth, waited })) = &m.act else { return kept };
    let told = |hold: &Hold| {
        let since = m.left.queue.iter().find(|w| w.lease == hold.lease).map_or(hold.asked_at, |w| w.asked_at);
        (*fence, *depth, *waited) == (hold.fence, hold.levels.len(), hold.granted_at.since(since))
    };
    kept && m.after.hold(ask.lease).is_some_and(|hold| has_level(hold, ask.level) && told(hold))
}

fn nobody_barges_in(m: &Moment) -> bool {
    m.granted().is_none_or(|hold| {
        let ahead = m.left.queue.iter().position(|w| w.lease == hold.lease).unwrap_or(m.left.queue.len());
        fit_together(modes(&m.left.holders, &m.left.queue[..ahead]).chain([hold.mode]))
    })
}

fn who_fits_is_admitted_at_once(m: &Moment) -> bool {
    let Act::Acquire(ask, answer) = &m.act else { return true };
    if ask.level != ask.lease || m.left.hold(ask.lease).is_some() || ask.if_fence.is_some() {
        return true;
    }
    let ahead = m.left.queue.iter().position(|w| w.lease == ask.lease).unwrap_or(m.left.queue.len());
    let fits = fit_together(modes(&m.left.holders, &m.left.queue[..ahead]).chain([ask.mode]));
    let waits = ask.patience != Patience::None;
    match answer {
        Answer::Granted(_) => fits,
        Answer::Queued(place) => !fits && waits && *place == ahead,
        Answer::Busy(holders, waiting) => {
            !fits && !waits && *holders == m.after.holders && *waiting == m.after.queue.len()
        }
        Answer::Refused(_) => false,
    }
}

fn the_queue_is_first_come_first_served(m: &Moment) -> bool {
    let mut line = leases(&m.left.queue);
    match &m.act {
        Act::Acquire(ask, Answer::Queued(_)) if !line.contains(&ask.lease) => line.push(ask.lease),
        Act::Acquire(ask, Answer::Granted(_) | Answer::Busy(..)) => line.retain(|lease| *lease != ask.lease),
        Act::Release(id, Released::Unqueued) => line.retain(|lease| lease != id),
        _ => {}
    }
    leases(&m.after.queue) == line
}

fn a_waiter_keeps_what_it_came_with(m: &Moment) -> bool {
    let before = |lease| m.left.queue.iter().find(|waiter| waiter.lease == lease);
    let waits = m.after.queue.iter().all(|is| {
        let sign = match &m.act {
            Act::Acquire(ask, Answer::Queued(_)) if ask.lease == is.lease => match ask.patience {
                Patience::SignOfLife(good_for) => Some(m.now().after(good_for)),
                Patience::None | Patience::Attended => None,
            },
            _ => before(is.lease).and_then(|was| was.until),
        };
        let came = before(is.lease).map_or((m.now(), m.after.last_ticket), |was| (was.asked_at, was.ticket));
        (is.asked_at, is.ticket) == came && is.until == sign
    });
    let takes = m.granted().is_none_or(|hold| {
        let came = before(hold.lease).map_or((m.now(), m.after.last_ticket), |was| (was.asked_at, was.ticket));
        (hold.asked_at, hold.levels[0].ticket) == came
    });
    waits && takes
}

fn who_shows_no_life_leaves_the_queue(m: &Moment) -> bool {
    m.after.queue.iter().all(|waiter| match waiter.until {
        Some(end) => m.now() < end || m.is_by(waiter.lease),
        None => m.world.living.contains(&(waiter.ticket, Role::Waiting)),
    })
}

fn who_lets_an_offer_lie_is_passed_over(m: &Moment) -> bool {
    let late = |waiter: &&Waiter| waiter.offered_at.is_some_and(|since| m.now().since(since) >= OFFER);
    let gone = |waiter: &Waiter| !leases(&m.after.queue).contains(&waiter.lease);
    m.before.queue.iter().filter(late).all(|waiter| m.is_by(waiter.lease) || gone(waiter))
}

fn offers_go_to_those_who_could_take_the_key(m: &Moment) -> bool {
    m.after.queue.iter().enumerate().all(|(at, waiter)| {
        let could = fit_together(modes(&m.after.holders, &m.after.queue[..=at]));
        let since = m.left.queue.iter().find(|was| was.lease == waiter.lease).and_then(|was| was.offered_at);
        waiter.offered_at == could.then_some(since.unwrap_or(m.now())) && (could || since.is_none())
    })
}

fn the_same_question_gets_the_same_answer(m: &Moment) -> bool {
    let Act::Acquire(ask, answer) = &m.act else { return true };
    let mut again = m.after.clone();
    let at_once = again.acquire(&m.world, ask) == *answer && again == m.after;
    at_once
        && m.left.hold(ask.lease).filter(|hold| has_level(hold, ask.level)).is_none_or(|hold| {
            matches!(answer, Answer::Granted(grant) if grant.fence == hold.fence) && m.after.holders == m.left.holders
        })
}

fn if_fence_takes_the_key_as_it_was_or_not_at_all(m: &Moment) -> bool {
    let Act::Acquire(ask, answer) = &m.act else { return true };
    let Some(expected) = ask.if_fence else { return true };
    if ask.level != ask.lease || m.left.hold(ask.lease).is_some() {
        return true;
    }
    let (same, free) = (expected == m.left.fence, m.left.holders.is_empty());
    match answer {
        Answer::Granted(_) => same && free,
        Answer::Busy(holders, waiting) => same && *holders == m.left.holders && (!free || *waiting > 0),
        Answer::Refused(Refusal::Fence(fence)) => !same && *fence == m.left.fence,
        Answer::Queued(_) | Answer::Refused(_) => false,
    }
}

fn re_entry_needs_a_living_lease_and_has_a_limit(m: &Moment) -> bool {
    let Act::Acquire(ask, answer) = &m.act else { return true };
    let hold = m.left.hold(ask.lease);
    if hold.is_some_and(|hold| has_level(hold, ask.level)) || (hold.is_none() && ask.level == ask.lease) {
        return true;
    }
    let lost = Answer::Refused(Refusal::Lost);
    let Some(hold) = hold.filter(|hold| !hold.levels.is_empty() && !hold.revoked && ask.level != ask.lease) else {
        return *answer == lost;
    };
    let contains = match (hold.mode, ask.mode) {
        (Mode::Exclusive, _) | (Mode::Shared, Mode::Shared) | (Mode::Slots(_), Mode::Slots(_)) => true,
        (Mode::Shared | Mode::Slots(_), _) => false,
    };
    let deep = hold.levels.len();
    if ask.if_fence.is_some_and(|expected| expected != m.left.fence) {
        return *answer == Answer::Refused(Refusal::Fence(m.left.fence));
    }
    match answer {
        Answer::Granted(grant) => contains && grant.depth == deep + 1 && deep <= ask.max_reentry as usize,
        Answer::Refused(Refusal::Narrower(mode)) => !contains && *mode == hold.mode,
        Answer::Refused(Refusal::TooDeep(most)) => {
            contains && *most == ask.max_reentry && deep > ask.max_reentry as usize
        }
        _ => false,
    }
}

fn renewal_never_revives(m: &Moment) -> bool {
    let Act::Renew(id, _, answer) = &m.act else { return true };
    let lives = m.left.holders.iter().any(|hold| has_level(hold, *id));
    let until = m.after.holders.iter().flat_map(|hold| &hold.levels).find(|level| level.id == *id).map(|l| l.until);
    match answer {
        Renewed::NotYours => !lives && until.is_none(),
        Renewed::Until(end) => lives && until == Some(*end),
        Renewed::Revoked => lives,
    }
}

fn renewal_never_shortens_nor_adds_up(m: &Moment) -> bool {
    m.kept().flat_map(|(was, is)| was.levels.iter().map(move |level| (level, is))).all(|(level, is)| {
        let Some(same) = is.levels.iter().find(|other| other.id == level.id) else { return true };
        match m.act {
            Act::Renew(id, ttl, Renewed::Until(_)) if id == level.id => {
                same.until == level.until.map(|end| end.max(m.now().after(ttl)))
            }
            _ => same.until == level.until,
        }
    })
}

fn a_revoked_lease_is_not_extended(m: &Moment) -> bool {
    let revoked = |id| m.left.holders.iter().any(|hold| hold.revoked && has_level(hold, id));
    match &m.act {
        Act::Renew(id, _, answer) => revoked(*id) == (*answer == Renewed::Revoked),
        _ => true,
    }
}

fn a_release_takes_off_one_level_and_says_what_that_did(m: &Moment) -> bool {
    let Act::Release(id, answer) = m.act else { return true };
    if m.left.queue.iter().any(|waiter| waiter.lease == id) {
        return answer == Released::Unqueued;
    }
    let Some(hold) = m.left.holders.iter().find(|hold| has_level(hold, id)) else {
        return answer == Released::NotYours && m.after == m.before.clone().seen(&m.world);
    };
    let cools = hold.hold_until.is_some_and(|end| m.now() < end) && !hold.revoked;
    answer
        == match (hold.levels.len(), cools) {
            (1, true) => Released::Cooling,
            (1, false) => Released::Freed,
            _ => Released::Left,
        }
}

fn a_second_release_is_not_yours_and_changes_nothing(m: &Moment) -> bool {
    let Act::Release(id, _) = m.act else { return true };
    let mut again = m.after.clone();
    again.release(&m.world, id, None) == Released::NotYours && again == m.after
}

fn unlock_touches_only_what_it_names(m: &Moment) -> bool {
    let Act::Unlock(named, force, answer) = &m.act else {
        return m.kept().all(|(was, is)| was.revoked == is.revoked);
    };
    let mut done = Unlocked::default();
    let right = m.left.holders.iter().all(|was| {
        let is = m.after.hold(was.lease);
        if !named.contains(&was.lease) {
            return is == Some(was);
        }
        let at_once = *force || !was.attended || was.levels.is_empty();
        if at_once {
            done.ended += 1;
        } else {
            done.told += 1;
        }
        let mut told = was.clone();
        told.revoked = true;
        is == (!at_once).then_some(&told)
    });
    right && *answer == done
}

fn the_counters_agree(m: &Moment) -> bool {
    let (was, is) = (&m.left.counters, &m.after.counters);
    let evicted = if let Act::Unlock(_, _, done) = &m.act { done.ended as u64 } else { 0 };
    is.grants == was.grants + u64::from(m.granted().is_some())
        && is.expiries == was.expiries
        && is.evictions == was.evictions + evicted
}

fn the_events_tell_what_happened_and_stay_few(m: &Moment) -> bool {
    let span = |hold: &Hold| m.now().since(hold.granted_at);
    let lasted = |kind: &EventKind, hold: &Hold| {
        let level_ends = hold.levels.iter().map(|level| level.until.unwrap_or(m.now()));
        let ends = hold.hold_until.filter(|_| *kind == EventKind::Cooled).into_iter().chain(level_ends);
        ends.max().map_or(span(hold), |end| end.since(hold.granted_at).min(span(hold)))
    };
    let mut news: Vec<_> = m.ended.iter().map(|(kind, hold)| (kind.clone(), hold, lasted(kind, hold))).collect();
    match &m.act {
        Act::Acquire(..) => {
            news.extend(m.granted().map(|is| (EventKind::Granted, is, is.granted_at.since(is.asked_at))));
        }
        Act::Release(id, Released::Freed | Released::Cooling) => {
            let hold = m.left.holders.iter().find(|hold| has_level(hold, *id));
            news.extend(hold.map(|hold| (EventKind::Released, hold, span(hold))));
        }
        Act::Unlock(named, ..) => news.extend(named.iter().filter_map(|lease| m.left.hold(*lease)).filter_map(|was| {
            match m.after.hold(was.lease) {
                None => Some((EventKind::Evicted, was, span(was))),
                Some(_) => (!was.revoked).then(|| (EventKind::Revoked, was, span(was))),
            }
        })),
        _ => {}
    }
    let news = news.into_iter().map(|(kind, hold, span)| (kind, hold.lease.short(), hold.fence, span.as_micros()));
    let told = |event: &Event| (event.kind.clone(), event.lease.clone(), event.fence, u128::from(event.micros));
    let all: Vec<_> = m.before.events.iter().map(told).chain(news).collect();
    let last = &all[all.len().saturating_sub(MAX_EVENTS)..];
    m.after.events.iter().map(told).eq(last.iter().cloned())
}

fn tickets_rise_and_never_recur(m: &Moment) -> bool {
    let levels = m.after.holders.iter().flat_map(|hold| &hold.levels).map(|level| level.ticket);
    let tickets: Vec<_> = levels.chain(m.after.queue.iter().map(|waiter| waiter.ticket)).collect();
    let known = |ticket| m.before.holders.iter().flat_map(|hold| &hold.levels).any(|level| level.ticket == ticket);
    let waits = |ticket| m.before.queue.iter().any(|waiter| waiter.ticket == ticket);
    tickets.iter().collect::<BTreeSet<_>>().len() == tickets.len()
        && m.after.last_ticket >= m.before.last_ticket
        && tickets.iter().all(|t| *t <= m.after.last_ticket && (known(*t) || waits(*t) || *t > m.before.last_ticket))
}

fn looking_again_shows_the_same(m: &Moment) -> bool {
    m.after.clone().seen(&m.world) == m.after
}
