//! `dlock guard`: the other end of the fence. A run of the resource as a key of this machine, of which the record
//! remembers the highest fence that was let pass.

use std::sync::Arc;

use super::asking;
use super::attend::Ready;
use super::report::Course;
use crate::child::Environment;
use crate::cli;
use crate::config::{GuardPlan, Held};
use crate::exit::{Code, Ending, Failure};
use crate::model::{Fence, Passage};
use crate::store::{self, Store};

/// Holds a resource while a command runs, unless its fence is stale.
pub(super) fn guard(guard: cli::Guard, global: &cli::Global) -> Result<Ending, Failure> {
    let plan = GuardPlan::read(guard, global)?;
    let held = Held::read()?;
    let Some(ready) = Ready::make(&plan.run)? else { return Ok(Ending::OK) };
    let guards = store::open_guards(&plan.directory)?;
    let store: Arc<dyn Store> = Arc::clone(&guards) as _;
    let key = &plan.run.terms.key;
    // Who is too late already need not wait for its turn to hear so.
    let seen = store.inspect(key)?.map_or(Fence::default(), |record| record.passed);
    if plan.fence < seen {
        return Ok(stale(&plan, seen, &*store));
    }
    let mut course = Course::default();
    let lease = match ready.take(&plan.run, &plan.settings, &held, &store, &mut course)? {
        Ok(lease) => lease,
        Err(ending) => return Ok(ending),
    };
    // Only who holds the resource asks: nothing newer comes between the answer and the command's end.
    match guards.pass(key, lease.level(), plan.fence) {
        Ok(Passage::Open) => {
            let env: Environment = vec![
                ("DLOCK_FENCE".into(), Some(plan.fence.to_string().into())),
                (Held::VARIABLE.into(), Some(held.with(store.identity(), key, lease.id()).into())),
            ];
            ready.attend(&plan.run, lease, env, &mut course)
        }
        Ok(Passage::Stale(seen)) => {
            asking::give_back(key, lease, None, false);
            Ok(stale(&plan, seen, &*store))
        }
        Ok(Passage::NotYours) => {
            log::error!("lost '{key}' before the command was started: its file was deleted");
            Ok(Code::Lost.into())
        }
        Err(error) => {
            asking::give_back(key, lease, None, true);
            Err(error.into())
        }
    }
}

fn stale(plan: &GuardPlan, seen: Fence, store: &dyn Store) -> Ending {
    let (key, fence) = (&plan.run.terms.key, plan.fence);
    log::error!(
        "fence {fence} is stale: '{key}' has seen {seen} in {}, so the lock was lost; not running the command",
        store.describe()
    );
    Code::Lost.into()
}
