//! How one sleeps until a key's record may have changed in a way that matters: until one is told, and until an instant that
//! the record names.

use std::time::Duration;

use super::{Connection, Failure, NatsRegister};
use crate::clock::Moment;
use crate::model::{Key, SIGN_OF_LIFE};
use crate::store::Watch;
use crate::store::turn::{ACT, limits, plan};

/// Whoever was told nothing looks so often: who changes a record may die before he tells of it.
const UNTOLD: Duration = Duration::from_secs(15);

/// The same once for whoever has just begun to listen in a cluster: servers farther away hear of that a little later.
const UNHEARD: Duration = Duration::from_secs(1);

impl NatsRegister {
    pub(super) fn wait(&self, key: &Key, watch: &Watch, timeout: Option<Duration>) -> Result<(), Failure> {
        let (until, limit) = limits(watch, timeout, self.patience);
        let bucket = &self.address.bucket;
        let (subject, left) = match watch {
            Watch::Turn(level) => (bucket.to_level(*level) + ".*", 0),
            // Whoever holds leaves a connection for the end of the command.
            Watch::Hold(level) => (bucket.to_level(*level) + ".*", 1),
            Watch::Ends(_) => (bucket.changes_of(key), 0),
        };
        let mut connection = self.listen(&subject, left, Moment::now().after(limit))?;
        let server = connection.server.clone();
        // What was told before we look is in the record.
        let slept = self.sleep(&mut connection, key, watch, (until, limit));
        if slept.is_ok() {
            self.idle.keep(connection);
        }
        slept.map_err(|failure| failure.by(&server))
    }

    fn sleep(
        &self,
        connection: &mut Connection,
        key: &Key,
        watch: &Watch,
        (until, limit): (Option<Moment>, Duration),
    ) -> Result<(), Failure> {
        let mut first = true;
        loop {
            let by = Moment::now().after(limit);
            let Some(reading) = self.look_at(connection, key, false, by)? else { return Ok(()) };
            let heard = Moment::now();
            let Some(mut plan) = plan(&reading.seen, reading.now, watch) else { return Ok(()) };
            // The time of a new leader must be written down, or it would begin anew each time that somebody looks.
            if reading.is_moved && plan.watches && matches!(watch, Watch::Turn(_)) {
                return Ok(());
            }
            if until.is_some_and(|until| until.left().is_zero()) {
                return Ok(());
            }
            let now = reading.now;
            if let Some(me) = plan.due(watch, now) {
                let good_until = now.after(SIGN_OF_LIFE);
                self.sign(connection, key, &reading, me, good_until, by)?;
                plan.signed = Some(good_until);
            }
            // As long as all goes well, an instant is not for those farther behind: who has just asked looks once.
            let is_new = std::mem::take(&mut first);
            let mine = plan.watches || is_new;
            let untold = if is_new && connection.info.cluster.is_some() { UNHEARD } else { UNTOLD };
            match connection.next_note(plan.wake((now, heard), mine, Some(untold), until))? {
                Some(subject) if subject.ends_with(&format!(".{ACT}")) => return Ok(()),
                // To look, or that something has changed.
                Some(_) | None => {}
            }
        }
    }
}
