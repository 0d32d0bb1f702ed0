//! `mount add`, `mount rm` and `mount ls`.

use std::path::Path;

use cofferdam_control::named::{self, BackendEntry, Entry, MountEntry, NamedError, NamedSpec};
use cofferdam_control::summary::escaped;
use cofferdam_control::{Mount, resolve};

use super::{open, text};
use crate::args::{MountAddArgs, MountLsArgs, MountRmArgs, MountVerb};
use crate::refusal::{EXIT_FAILED, Refusal};
use crate::units::MountSpec;
use crate::{output, run, state};

pub(crate) fn mount(verb: MountVerb) -> u8 {
    let (listed, json) = match verb {
        MountVerb::Add(MountAddArgs { name, mount, json }) => (add(&name, mount).map(|added| vec![added]), json),
        MountVerb::Rm(MountRmArgs { name, target, json }) => (remove(&name, &target).map(|()| Vec::new()), json),
        MountVerb::Ls(MountLsArgs { name, json }) => (list(&name), json),
    };
    match listed {
        Ok(mounts) if json => output::print_json(&serde_json::json!(mounts)),
        Ok(mounts) => output::print(&mounts.iter().map(|mount| format!("{}\n", line(mount))).collect::<String>()),
        Err(refusal) => refusal.with_status(EXIT_FAILED).tell(json),
    }
}

fn list(name: &str) -> Result<Vec<MountEntry>, Refusal> {
    Ok(open(name)?.spec().map_err(|error| Refusal::from(&error))?.mounts)
}

fn remove(name: &str, target: &Path) -> Result<(), Refusal> {
    let entry = open(name)?;
    match named::remove_mount(&entry, target.to_owned()) {
        Err(NamedError::Stopped(_)) => rewrite(entry, |spec| spec.without_mount(target)),
        other => other.map_err(|error| Refusal::from(&error)),
    }
}

/// Changes what the next start of one that is stopped shows.
fn rewrite(entry: Entry, change: impl FnOnce(&NamedSpec) -> Result<NamedSpec, String>) -> Result<(), Refusal> {
    let locked = entry.lock().map_err(|error| Refusal::from(&error))?;
    // Read under the lock: nobody changes it meanwhile.
    let spec = locked.entry().spec().map_err(|error| Refusal::from(&error))?;
    let changed = change(&spec)
        .map_err(|why| Refusal::setup(format!("what {} is shown is not changed: {why}", locked.entry().name())))?;
    locked.replace_spec(&changed).map_err(|error| Refusal::from(&error))
}

fn add(name: &str, mount: MountSpec) -> Result<MountEntry, Refusal> {
    let entry = open(name)?;
    let spec = entry.spec().map_err(|error| Refusal::from(&error))?;
    let mut options =
        spec.run_options(Vec::new(), Vec::new()).map_err(|error| Refusal::setup(output::chain(&error)))?;
    let MountSpec { source, target, read_only } = mount;
    let source = std::path::absolute(&source)
        .map_err(|error| Refusal::setup(format!("{} cannot be found: {error}", source.display())))?;
    options.mounts.push(Mount { source: source.clone(), target: target.clone(), read_only });
    // As with --mount: no link is followed that a program in a sandbox may have left.
    let source = resolve(&source, &run::suspect_roots(&options))
        .map_err(|error| Refusal::setup(format!("the mount cannot be used: {error}")))?;
    if spec.backend == BackendEntry::Vm && !source.is_dir() {
        let text = format!("{} is no directory, and a guest is shown whole ones", source.display());
        return Err(Refusal::setup(text));
    }
    if let Some(shown) = options.mounts.last_mut() {
        shown.source.clone_from(&source);
    }
    state::refuse_shown(&options)?;
    text("a path", source.clone().into_os_string())?;
    text("a path", target.clone().into_os_string())?;
    let added = MountEntry { source, target, read_only };
    match named::add_mount(&entry, added.clone()) {
        Err(NamedError::Stopped(_)) => rewrite(entry, |spec| spec.with_mount(added.clone()))?,
        Err(error) => return Err(Refusal::from(&error)),
        Ok(notice) => notice.iter().for_each(|notice| output::say(notice)),
    }
    Ok(added)
}

/// A mount as it is written on a command line.
pub(super) fn line(MountEntry { source, target, read_only }: &MountEntry) -> String {
    escaped(&format!("{}:{}{}", source.display(), target.display(), if *read_only { ":ro" } else { "" }))
}
