//! Where this user's sandboxes and the records of runs are kept.

use std::path::PathBuf;

use cofferdam_control::named::Registry;
use cofferdam_control::store::{RecordAs, RunKind, RunStore};
use cofferdam_control::{EventLog, RunOptions, check_hidden};

use crate::output;
use crate::refusal::Refusal;

/// Where root keeps things when nothing says where.
const ROOTS_STATE: &str = "/var/lib";

/// The state directory.
pub(crate) fn directory() -> Result<PathBuf, Refusal> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // The XDG base directory specification has relative paths ignored.
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let state = state.or_else(|| rustix::process::geteuid().is_root().then(|| ROOTS_STATE.into()));
    let refusal = || Refusal::setup("there is no state directory: set HOME or XDG_STATE_HOME".to_owned());
    Ok(state.ok_or_else(refusal)?.join("cofferdam"))
}

/// The sandboxes of this user.
pub(crate) fn registry() -> Result<Registry, Refusal> {
    Ok(Registry::at(&directory()?))
}

/// The records of this user's runs.
pub(crate) fn run_store() -> Result<RunStore, Refusal> {
    Ok(RunStore::at(&directory()?))
}

/// Has a run recorded. A run whose record has no place goes on without, and `tell` says so.
pub(crate) fn recorded(log: EventLog, kind: RunKind, sandbox: Option<&str>, tell: &mut dyn FnMut(&str)) -> EventLog {
    match run_store() {
        Ok(store) => {
            let (sandbox, directory) = (sandbox.map(str::to_owned), std::env::current_dir().ok());
            log.recorded(RecordAs { store, kind, sandbox, directory })
        }
        Err(refusal) => {
            tell(&format!("this run is not recorded: {}", refusal.text));
            log
        }
    }
}

/// Refuses to show the state directory, through which sandboxes that stay could be taken over and records changed.
pub(crate) fn refuse_shown(options: &RunOptions) -> Result<(), Refusal> {
    match directory() {
        Ok(state) => check_hidden(&state, options).map_err(|error| Refusal::setup(output::chain(&error))),
        // What has no place is not shown either.
        Err(_) => Ok(()),
    }
}
