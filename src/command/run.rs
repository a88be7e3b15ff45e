//! `dlock run`.

use super::attend::Ready;
use super::report::{self, Course};
use crate::child::Environment;
use crate::cli;
use crate::config::{Held, RunPlan, Settings};
use crate::exit::{Ending, Failure};
use crate::store::Intent;

/// Holds a key while a command runs, and reports on it if that is wanted.
pub(super) fn run(run: cli::Run, global: &cli::Global) -> Result<Ending, Failure> {
    let (file, key) = (run.report.clone(), run.key.clone());
    report::reported(file.as_deref(), &key, |course| hold(run, global, course))
}

fn hold(run: cli::Run, global: &cli::Global, course: &mut Course) -> Result<Ending, Failure> {
    let settings = Settings::read(global)?;
    let plan = RunPlan::read(run, &settings)?;
    course.planned(&plan);
    let held = Held::read()?;
    let Some(ready) = Ready::make(&plan)? else { return Ok(Ending::OK) };
    let store = super::open(&settings, Intent::Lock)?;
    course.asks(store.identity());
    let lease = match ready.take(&plan, &settings, &held, &store, course)? {
        Ok(lease) => lease,
        Err(ending) => return Ok(ending),
    };
    let key = &plan.terms.key;
    let mut env: Environment = vec![
        ("DLOCK_KEY".into(), Some(key.as_str().into())),
        ("DLOCK_LEASE".into(), Some(lease.id().secret().into())),
        ("DLOCK_FENCE".into(), Some(lease.fence().to_string().into())),
        (Held::VARIABLE.into(), Some(held.with(store.identity(), key, lease.id()).into())),
    ];
    env.extend(settings.handed_on.iter().map(|(name, value)| ((*name).into(), value.clone())));
    ready.attend(&plan, lease, env, course)
}
