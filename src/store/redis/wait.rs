//! How one sleeps until a key's record may have changed in a way that matters: on a list of one's own
//! (BLPOP), and until an instant that the record names.

use std::time::Duration;

use redis::{Value, cmd};

use super::address::Endpoint;
use super::cluster::Redirection;
use super::pool::is_refusal;
use super::reply::{self, Queued};
use super::router::Request;
use super::trouble::Failure;
use super::{RedisStore, lock};
use crate::clock::Moment;
use crate::model::{Key, LeaseId, LevelId, Stamp};
use crate::store::Watch;

/// How long to listen to what becomes of a hold if nothing ends that.
const LISTEN: Duration = Duration::from_secs(16);

/// If the one who watches is dead, too, then any other who shows its life notices what is overdue by so much.
const OVERDUE: Duration = Duration::from_millis(1500);

/// The same where another server may take the place of ours, and its queue be an older one, in which many are dead at
/// once: at least so much, and up to a quarter of a second more, so that not all look at once.
const OVERDUE_AFTER_SUCCESSION: Duration = Duration::from_millis(200);

/// How much later than it was asked to a server may answer a sleeper.
const LATE: Duration = Duration::from_secs(1);

/// How often one who waits for the end of a lease looks whether it missed the word of it: several may wait
/// for the same one, and one of them gets the word.
const LOOK: Duration = Duration::from_secs(1);

/// How often one who sleeps looks at the record where another server may take the place of ours: soon enough to take the
/// key there before one is passed over for not taking it, and to pass over others. The queue there may be an old one, in
/// which those are first who have had their turn.
const SUCCESSION: Duration = Duration::from_secs(2);

/// How long one who waits asks a server for the key whose place another one may take, which is asked for then: whoever
/// hangs at one that froze is not there when the other offers the key.
pub(super) const TRY: Duration = Duration::from_secs(1);

/// How often one who sleeps is sent on to another server before that is taken for an error.
const HOPS: usize = 4;

/// Where one stands that waits in line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    /// The server's clock when it spoke last, and ours when we heard it.
    clock: (Stamp, Moment),
    /// The instant at which something may end that nobody tells of, and whether we are the one to watch it.
    next: Option<Stamp>,
    watches: bool,
    /// How long to leave it to others, if it is not for us.
    patience: Duration,
    /// When we showed our life last, and how long that is good.
    signed: Moment,
    good_for: Duration,
}

impl Place {
    pub(super) fn new(queued: Queued, heard: Moment, good_for: Duration, patience: Duration) -> Self {
        let Queued { now, next, watches } = queued;
        Self { clock: (now, heard), next, watches, patience, signed: heard, good_for }
    }

    /// When to show our life: there is time left for a second try. With a look at the record and the next
    /// sleep that makes three commands every 16 s.
    fn sign_at(&self) -> Moment {
        self.signed.after(self.good_for * 2 / 3)
    }

    /// The server's clock at a moment of ours.
    fn server_at(&self, moment: Moment) -> Stamp {
        self.clock.0.after(moment.since(self.clock.1))
    }

    /// The moment of ours at which the server's clock shows `stamp`.
    fn moment_of(&self, stamp: Stamp) -> Moment {
        self.clock.1.after(stamp.since(self.clock.0))
    }

    /// When to look at the record.
    fn due(&self) -> Option<Moment> {
        self.next.map(|next| self.moment_of(next.after(self.patience())))
    }

    /// Whether something should have ended by now.
    fn is_overdue(&self) -> bool {
        let now = self.server_at(Moment::now());
        self.next.is_some_and(|next| next.after(self.patience()) <= now)
    }

    fn patience(&self) -> Duration {
        if self.watches { Duration::ZERO } else { self.patience }
    }

    /// Takes in what a script told: `watch NEXT NOW`.
    fn told(&mut self, word: &str) -> Option<()> {
        let mut numbers = word.strip_prefix("watch ")?.split(' ');
        let next = numbers.next()?;
        let now = numbers.next()?.parse().map(Stamp::from_micros).ok()?;
        // It may have lain there for a while, so it says less about the clock than a reply.
        if now > self.server_at(Moment::now()) {
            self.clock = (now, Moment::now());
        }
        self.next = next.parse().map(Stamp::from_micros).ok();
        self.watches = true;
        Some(())
    }
}

impl RedisStore {
    /// How long this one leaves it to others to notice what is overdue.
    pub(super) fn patience_of(&self, level: LevelId) -> Duration {
        if !self.router.has_others() {
            return OVERDUE;
        }
        OVERDUE_AFTER_SUCCESSION + Duration::from_millis(u64::from(level.secret().bytes().fold(0, u8::wrapping_add)))
    }

    /// Whether there was a word, or whatever else is a reason to ask.
    pub(super) fn wait(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<bool, Failure> {
        let until = timeout.map(|timeout| Moment::now().after(timeout));
        match watch {
            Watch::Turn(level) => self.await_turn(key, *level, until).map(|()| true),
            // Who listens leaves time for what comes next, and a connection for the end of the command.
            Watch::Hold(level) => {
                let span = timeout.unwrap_or(LISTEN);
                let list = self.name(key, &format!("wake:{}", level.secret()));
                self.pop(key, &[list], (span * 9 / 10, span / 10), 1).map(|word| word.is_some())
            }
            Watch::Ends(leases) => {
                let span = timeout.map_or(LOOK, |timeout| timeout.min(LOOK));
                let list = |lease: &LeaseId| self.name(key, &format!("wake:end:{}", lease.secret()));
                let lists: Vec<String> = leases.iter().map(list).collect();
                self.pop(key, &lists, (span, LATE), 0).map(|word| word.is_some())
            }
        }
    }

    /// Sleeps until it is time to ask.
    fn await_turn(&self, key: &Key, level: LevelId, until: Option<Moment>) -> Result<(), Failure> {
        let Some(mut place) = lock(&self.places).get(&level).copied() else { return Ok(()) };
        let begun = place;
        let list = self.name(key, &format!("wake:{}", level.secret()));
        let outcome = loop {
            let sign = place.sign_at();
            let wake = [Some(sign), place.due(), until].into_iter().flatten().min().unwrap_or(sign);
            let span = if self.router.has_others() { wake.left().min(SUCCESSION) } else { wake.left() };
            match self.pop(key, std::slice::from_ref(&list), (span, LATE), 0) {
                Err(failure) => break Err(failure),
                Ok(Some(word)) if place.told(&word).is_some() => continue,
                Ok(Some(_)) => break Ok(()),
                Ok(None) => {}
            }
            if until.is_some_and(|until| until.left().is_zero()) {
                break Ok(());
            }
            let signs = sign.left().is_zero();
            match self.look(key, level, &mut place, signs) {
                Ok(true) => {}
                done => break done.map(drop),
            }
        };
        let mut places = lock(&self.places);
        // Who waits for several nodes may have asked this one meanwhile, and what it said then is newer.
        if places.get(&level) == Some(&begun) {
            places.insert(level, place);
        }
        outcome
    }

    /// Reads the instant that is watched, and shows our life if it is time to. Whether to sleep on: no if
    /// that instant has passed, or if we are not in the queue any more.
    fn look(&self, key: &Key, level: LevelId, place: &mut Place, signs: bool) -> Result<bool, Failure> {
        let slot = self.slot(key);
        let request = |command| Request { slot, command, alone: None };
        let mut requests = vec![request(cmd("HGET").arg(self.name(key, "record")).arg("next").take())];
        if signs {
            let good_until = place.server_at(Moment::now()).after(place.good_for).micros();
            let mut sign = cmd("ZADD");
            sign.arg(self.name(key, "life")).arg("XX").arg("CH").arg(good_until).arg(level.secret());
            requests.push(request(sign));
        }
        let mut replies = vec![Value::Nil; requests.len()];
        for (places, answers) in self.router.ask_all(&requests, Moment::now().after(self.patience)) {
            let (answers, by) = answers?;
            for (at, reply) in places.into_iter().zip(answers) {
                if let Value::ServerError(error) = reply {
                    return Err(Failure::Server(error).by(&by));
                }
                replies[at] = reply;
            }
        }
        if signs {
            place.signed = Moment::now();
            if replies.pop().as_ref().and_then(reply::number) == Some(0) {
                return Ok(false);
            }
        }
        // Where somebody waits, there is something to wait for, unless the record was lost.
        let Some(next) = replies.first().and_then(reply::number).map(Stamp::from_micros) else { return Ok(false) };
        place.next = Some(next);
        let sleep_on = !place.is_overdue();
        if !place.watches && !self.router.has_others() {
            // As long as all goes well, that is somebody else's.
            place.next = None;
        }
        Ok(sleep_on)
    }

    /// Takes a word off one of the lists; nothing if there is none for a span. The server may be late with that by
    /// another one. Of the idle connections so many are `left` alone.
    fn pop(
        &self,
        key: &Key,
        lists: &[String],
        (span, late): (Duration, Duration),
        left: usize,
    ) -> Result<Option<String>, Failure> {
        let slot = self.slot(key);
        let until = Moment::now().after(span);
        let mut server = self.router.server_of(slot, until.after(late))?;
        let mut asking = false;
        for _ in 0..HOPS {
            let popped = self.pop_at(&server, asking, lists, (until, late), left);
            let refusal = match &popped {
                Ok(refusal @ Value::ServerError(_)) => Some(refusal),
                Ok(_) => None,
                Err(_) => {
                    self.router.heed(slot, &server, None);
                    None
                }
            };
            match refusal.and_then(|refusal| self.router.heed(slot, &server, Some(refusal))) {
                Some(Redirection::Moved(to)) => (server, asking) = (to, false),
                Some(Redirection::Ask(to)) => (server, asking) = (to, true),
                Some(Redirection::TryAgain | Redirection::Down) | None => {
                    return match popped.map_err(|failure| failure.by(&server))? {
                        Value::Nil => Ok(None),
                        Value::Array(pair) => Ok(pair.get(1).and_then(reply::text).map(str::to_owned)),
                        Value::ServerError(error) => Err(Failure::Server(error).by(&server)),
                        _ => Err(Failure::Garbage.by(&server)),
                    };
                }
            }
        }
        Err(Failure::Unknown("its nodes do not agree on who has this key".into()).by(&server))
    }

    fn pop_at(
        &self,
        server: &Endpoint,
        asking: bool,
        lists: &[String],
        (until, late): (Moment, Duration),
        left: usize,
    ) -> Result<Value, Failure> {
        let pool = &self.router.pool;
        let mut connection = match pool.take_idle(server, left) {
            Some(connection) => connection,
            None => pool.open(server, until.after(late))?,
        };
        if asking {
            let replies = connection.ask(&[cmd("ASKING")], until.after(late).left())?;
            if let Some(refusal) = replies.into_iter().find(is_refusal) {
                return Ok(refusal);
            }
        }
        // Zero would be for ever.
        let span = until.left().max(Duration::from_millis(10));
        let mut pop = cmd("BLPOP");
        pop.arg(lists).arg(format!("{:.3}", span.as_secs_f64()));
        let reply = connection.ask_to_wait(pop, span, late)?;
        pool.keep(connection);
        Ok(reply)
    }
}
