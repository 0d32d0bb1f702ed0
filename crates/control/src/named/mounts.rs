//! What of the host a virtual machine that stays is shown, and how that changes while it runs.
//!
//! | State of a change | Event | Next | Then |
//! |---|---|---|---|
//! | – | to be added where the guest still has one that was taken away | clearing | the guest is asked to unmount that |
//! | clearing | it has | serving | as below |
//! | clearing | it has not, or not in time | – | refused |
//! | – | to be added | serving | the server of the machine's files is given the directory |
//! | serving | it serves it | mounting | the guest is asked to mount it |
//! | serving | it does not | – | refused |
//! | mounting | the guest has | – | done |
//! | mounting | it has not, or not in time | withdrawing | the server is told to let go of it |
//! | – | to be removed | unmounting | the guest is asked to unmount it, for what it has yet to write |
//! | unmounting | it has, it has not, or not in time | withdrawing | the server is told to let go of it: that is the host's to decide |
//! | withdrawing | it has | – | done, or refused with what the guest has said |
//!
//! Every mount is a share of its own with a number that no other gets. The guest's answers are believed in nothing: they decide what
//! whoever asked is told, and when the next question is asked. There is one change at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_backend_ns::{ShareAnswer, ShareOrder};
use cofferdam_backend_vm::MOST_SHARES;

use super::spec::MountEntry;
use crate::summary::escaped;

/// How long the server may take. It does nothing that takes long.
const SERVING: Duration = Duration::from_secs(10);

/// How long a guest may take to mount. It loads modules for the first, without KVM for more than a second.
const MOUNTING: Duration = Duration::from_secs(30);

/// How long it may take to write what it has in memory, and unmount.
const UNMOUNTING: Duration = Duration::from_secs(10);

/// The mounts of a machine, and the one that is changing.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// Where in the guest the share of each number is.
    shares: BTreeMap<u32, PathBuf>,
    next: u32,
    /// Where the guest has not unmounted what was taken away.
    left: BTreeSet<PathBuf>,
    change: Option<Change>,
}

#[derive(Debug)]
struct Change {
    asked_by: u64,
    number: u32,
    mount: MountEntry,
    step: Step,
    due: Instant,
    /// Answers of the server that come before the one that is waited for.
    skips: u32,
}

#[derive(Debug)]
enum Step {
    /// With what is to be served then.
    Clearing(OwnedFd),
    Serving,
    Mounting,
    Unmounting,
    /// What whoever asked is told then.
    Withdrawing(Outcome),
}

/// What has come of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Added,
    /// And why.
    NotAdded(String),
    Removed,
    /// It is shown no more, and this is not as it should be.
    RemovedBut(String),
}

/// A change that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) asked_by: u64,
    pub(super) mount: MountEntry,
    pub(super) outcome: Outcome,
}

impl Mounts {
    /// Of a machine that was started with mounts at these places.
    pub(super) fn new(targets: impl IntoIterator<Item = PathBuf>) -> Mounts {
        let shares: BTreeMap<u32, PathBuf> = (0..).zip(targets).collect();
        let next = u32::try_from(shares.len()).unwrap_or(u32::MAX);
        Mounts { shares, next, ..Mounts::default() }
    }

    pub(super) fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Checks that there is room for a mount at this place.
    ///
    /// # Errors
    /// Why there is none, and what to do.
    pub(super) fn check(&self, target: &Path) -> Result<(), String> {
        check_target(target)?;
        let shown = target.display();
        for there in self.shares.values() {
            let at = there.display();
            if there == target {
                return Err(taken(there));
            }
            // A share is whole: what is mounted over a part of it in the guest, root there takes away again.
            if target.starts_with(there) {
                return Err(format!(
                    "{shown} is in {at}, of which root in a guest sees everything; choose a place beside that"
                ));
            }
            if there.starts_with(target) {
                return Err(format!("{at} is in {shown}, and would be hidden; choose a place beside that"));
            }
        }
        if self.shares.len() >= MOST_SHARES {
            return Err(format!("a machine has at most {MOST_SHARES} mounts; take one away with `cofferdam mount rm`"));
        }
        Ok(())
    }

    /// Begins to show a directory, for which there is room.
    pub(super) fn add(&mut self, asked_by: u64, mount: MountEntry, tree: OwnedFd, now: Instant) -> ShareOrder {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        let (step, due, order) = match self.left.get(&mount.target) {
            Some(target) => {
                let order = ShareOrder::Detach { number, target: target.clone() };
                (Step::Clearing(tree), now + UNMOUNTING, order)
            }
            None => {
                let order = ShareOrder::Share { number, read_only: mount.read_only, tree };
                (Step::Serving, now + SERVING, order)
            }
        };
        self.change = Some(Change { asked_by, number, mount, step, due, skips: 0 });
        order
    }

    /// Begins to take one away. `None`: there is no such mount.
    pub(super) fn remove(&mut self, asked_by: u64, mount: MountEntry, now: Instant) -> Option<ShareOrder> {
        let (number, target) = self.shares.iter().find(|(_, target)| **target == mount.target)?;
        let (number, order) = (*number, ShareOrder::Detach { number: *number, target: target.clone() });
        self.change = Some(Change { asked_by, number, mount, step: Step::Unmounting, due: now + UNMOUNTING, skips: 0 });
        Some(order)
    }

    /// Somebody has answered.
    pub(super) fn answered(&mut self, answer: ShareAnswer, now: Instant) -> (Option<ShareOrder>, Option<Ended>) {
        let Some(change) = &mut self.change else { return (None, None) };
        match answer {
            ShareAnswer::Served { number, .. } if number == change.number && change.skips > 0 => {
                change.skips -= 1;
                (None, None)
            }
            ShareAnswer::Served { number, result } if number == change.number => match (&change.step, result) {
                (Step::Serving, Ok(())) => {
                    (change.step, change.due) = (Step::Mounting, now + MOUNTING);
                    let MountEntry { target, read_only, .. } = &change.mount;
                    (Some(ShareOrder::Attach { number, read_only: *read_only, target: target.clone() }), None)
                }
                (Step::Serving, Err(why)) => (None, self.end(Outcome::NotAdded(why))),
                (Step::Withdrawing(outcome), _) => {
                    let outcome = outcome.clone();
                    (None, self.end(outcome))
                }
                (Step::Clearing(_) | Step::Mounting | Step::Unmounting, _) => (None, None),
            },
            ShareAnswer::Mounted { number, result } if number == change.number => {
                match (&change.step, result.map_err(|why| escaped(&why))) {
                    (Step::Clearing(_), Ok(())) => (self.serve(now), None),
                    (Step::Clearing(_), Err(why)) => (None, self.end(in_the_way(&why))),
                    (Step::Mounting, Ok(())) => (None, self.end(Outcome::Added)),
                    (Step::Mounting, Err(why)) => {
                        (Some(change.withdraw(Outcome::NotAdded(format!("the guest says: {why}")), now)), None)
                    }
                    (Step::Unmounting, Ok(())) => (Some(change.withdraw(Outcome::Removed, now)), None),
                    (Step::Unmounting, Err(why)) => (Some(change.withdraw(still_mounted(&why), now)), None),
                    (Step::Serving | Step::Withdrawing(_), _) => (None, None),
                }
            }
            // Of a change before.
            ShareAnswer::Served { .. } | ShareAnswer::Mounted { .. } => (None, None),
        }
    }

    /// When [`Mounts::give_up`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.change.as_ref().map(|change| change.due)
    }

    /// Waits no longer for whoever is late.
    pub(super) fn give_up(&mut self, now: Instant) -> (Option<ShareOrder>, Option<Ended>) {
        let Some(change) = self.change.as_mut().filter(|change| change.due <= now) else { return (None, None) };
        match &change.step {
            Step::Clearing(_) => (None, self.end(in_the_way(&late(UNMOUNTING)))),
            Step::Serving => {
                change.skips += 1;
                (Some(change.withdraw(Outcome::NotAdded(DEAF.to_owned()), now)), None)
            }
            Step::Mounting => {
                let why = format!("the guest has not mounted it within {} seconds", MOUNTING.as_secs());
                (Some(change.withdraw(Outcome::NotAdded(why), now)), None)
            }
            Step::Unmounting => (Some(change.withdraw(still_mounted(&late(UNMOUNTING)), now)), None),
            Step::Withdrawing(Outcome::Added | Outcome::NotAdded(_)) => {
                (None, self.end(Outcome::NotAdded(format!("{DEAF}; `cofferdam stop` ends it"))))
            }
            Step::Withdrawing(Outcome::Removed | Outcome::RemovedBut(_)) => {
                (None, self.end(Outcome::RemovedBut(format!("{DEAF}, and may show it yet; `cofferdam stop` ends it"))))
            }
        }
    }

    /// The place is free: goes on as where it always was.
    fn serve(&mut self, now: Instant) -> Option<ShareOrder> {
        let change = self.change.as_mut()?;
        self.left.remove(&change.mount.target);
        change.due = now + SERVING;
        match std::mem::replace(&mut change.step, Step::Serving) {
            Step::Clearing(tree) => {
                Some(ShareOrder::Share { number: change.number, read_only: change.mount.read_only, tree })
            }
            Step::Serving | Step::Mounting | Step::Unmounting | Step::Withdrawing(_) => None,
        }
    }

    fn end(&mut self, outcome: Outcome) -> Option<Ended> {
        let Change { asked_by, number, mount, .. } = self.change.take()?;
        match &outcome {
            Outcome::Added => drop(self.shares.insert(number, mount.target.clone())),
            Outcome::NotAdded(_) => {}
            Outcome::Removed => drop(self.shares.remove(&number)),
            // It is mounted there until somebody in the guest lets go of it. So many places as a machine has mounts are remembered.
            Outcome::RemovedBut(_) => {
                let place = self.shares.remove(&number);
                self.left.extend(place.filter(|_| self.left.len() < MOST_SHARES));
            }
        }
        Some(Ended { asked_by, mount, outcome })
    }
}

impl Change {
    fn withdraw(&mut self, outcome: Outcome, now: Instant) -> ShareOrder {
        (self.step, self.due) = (Step::Withdrawing(outcome), now + SERVING);
        ShareOrder::Unshare { number: self.number }
    }
}

const DEAF: &str = "the process that serves the guest's files does not answer";

fn in_the_way(why: &str) -> Outcome {
    Outcome::NotAdded(format!("the guest still has there what was taken away, and cannot unmount it: {why}"))
}

fn late(time: Duration) -> String {
    format!("it has not answered within {} seconds", time.as_secs())
}

fn still_mounted(why: &str) -> Outcome {
    Outcome::RemovedBut(format!(
        "it is not shown any more, but the guest could not unmount it: {why}; whatever uses it there gets errors"
    ))
}

/// Why nothing more can be mounted at a path.
pub(super) fn taken(target: &Path) -> String {
    format!("there is a mount at {} already; take it away with `cofferdam mount rm` before", target.display())
}

/// Whether something can be mounted at a path inside, whatever else is.
pub(super) fn check_target(target: &Path) -> Result<(), String> {
    let shown = target.display();
    if !target.is_absolute() || target.components().any(|part| part == Component::ParentDir) {
        return Err(format!("the mount target {shown} is not an absolute path without .."));
    }
    if target.components().count() == 1 {
        return Err("/ cannot be a mount target".to_owned());
    }
    if target.as_os_str().len() > LONGEST_TARGET {
        return Err(format!("the mount target is longer than {LONGEST_TARGET} bytes"));
    }
    Ok(())
}

/// `PATH_MAX` of Linux, with its NUL.
const LONGEST_TARGET: usize = 4095;

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str) -> MountEntry {
        MountEntry { source: "/src".into(), target: target.into(), read_only: true }
    }

    fn tree() -> OwnedFd {
        std::fs::File::open("/").unwrap().into()
    }

    fn mounts() -> Mounts {
        Mounts::new(["/data".into(), "/a/b".into()])
    }

    fn served(number: u32, result: Result<(), &str>) -> ShareAnswer {
        ShareAnswer::Served { number, result: result.map_err(str::to_owned) }
    }

    fn mounted(number: u32, result: Result<(), &str>) -> ShareAnswer {
        ShareAnswer::Mounted { number, result: result.map_err(str::to_owned) }
    }

    fn ended(outcome: Outcome, target: &str) -> Option<Ended> {
        Some(Ended { asked_by: 7, mount: mount(target), outcome })
    }

    #[test]
    fn a_mount_is_there_once_it_is_served_and_the_guest_has_it() {
        let (mut list, now) = (mounts(), Instant::now());
        let order = list.add(7, mount("/new"), tree(), now);
        assert!(matches!(order, ShareOrder::Share { number: 2, read_only: true, .. }), "{order:?}");
        // What a guest says that nobody asked is nothing.
        assert!(matches!(list.answered(mounted(2, Ok(())), now), (None, None)));
        assert!(matches!(list.answered(served(1, Ok(())), now), (None, None)));
        let (Some(ShareOrder::Attach { number: 2, read_only: true, target }), None) =
            list.answered(served(2, Ok(())), now)
        else {
            panic!()
        };
        assert_eq!(target, Path::new("/new"));
        assert!(list.check(Path::new("/new")).is_ok());
        let (None, over) = list.answered(mounted(2, Ok(())), now) else { panic!() };
        assert_eq!(over, ended(Outcome::Added, "/new"));
        assert!(list.check(Path::new("/new")).is_err());
        assert!(!list.is_changing());
    }

    #[test]
    fn what_a_guest_does_not_mount_is_served_no_more() {
        for late in [false, true] {
            let (mut list, now) = (mounts(), Instant::now());
            list.add(7, mount("/new"), tree(), now);
            list.answered(served(2, Ok(())), now);
            let (order, None) = (match late {
                false => list.answered(mounted(2, Err("no\u{1b}[2J")), now),
                true => list.give_up(now + MOUNTING),
            }) else {
                panic!()
            };
            assert!(matches!(order, Some(ShareOrder::Unshare { number: 2 })), "{order:?}");
            let (None, Some(over)) = list.answered(served(2, Ok(())), now) else { panic!() };
            let Outcome::NotAdded(why) = over.outcome else { panic!() };
            assert!(why.starts_with("the guest ") && !why.contains('\u{1b}'), "{why}");
            assert!(list.check(Path::new("/new")).is_ok());
            // Its number is not given again.
            assert!(matches!(list.add(7, mount("/new"), tree(), now), ShareOrder::Share { number: 3, .. }));
        }
    }

    #[test]
    fn the_host_takes_away_what_a_guest_holds() {
        for said in [Some(Ok(())), Some(Err("Device or resource busy")), None] {
            let (mut list, now) = (mounts(), Instant::now());
            let Some(ShareOrder::Detach { number: 1, target }) = list.remove(7, mount("/a//b"), now) else { panic!() };
            assert_eq!(target, Path::new("/a/b"));
            let (order, None) = (match said {
                Some(result) => list.answered(mounted(1, result), now),
                None => list.give_up(now + UNMOUNTING),
            }) else {
                panic!()
            };
            assert!(matches!(order, Some(ShareOrder::Unshare { number: 1 })), "{order:?}");
            // It changes its mind in vain.
            assert!(matches!(list.answered(mounted(1, Ok(())), now), (None, None)));
            let (None, Some(over)) = list.answered(served(1, Ok(())), now) else { panic!() };
            match (said, over.outcome) {
                (Some(Ok(())), Outcome::Removed) => {}
                (Some(Err(_)), Outcome::RemovedBut(why)) => assert!(why.contains("resource busy"), "{why}"),
                (None, Outcome::RemovedBut(why)) => assert!(why.contains("10 seconds"), "{why}"),
                (_, other) => panic!("{other:?}"),
            }
            assert!(list.check(Path::new("/a/b")).is_ok());
            if said == Some(Ok(())) {
                continue;
            }
            // What is left of it there has to go before the next.
            let order = list.add(7, mount("/a/b"), tree(), now);
            assert!(matches!(order, ShareOrder::Detach { number: 2, .. }), "{order:?}");
            let (None, Some(over)) = list.answered(mounted(2, Err("busy")), now) else { panic!() };
            assert!(matches!(over.outcome, Outcome::NotAdded(_)));
            list.add(7, mount("/a/b"), tree(), now);
            let (None, Some(_)) = list.give_up(now + UNMOUNTING) else { panic!() };
            list.add(7, mount("/a/b"), tree(), now);
            let (order, None) = list.answered(mounted(4, Ok(())), now) else { panic!() };
            assert!(matches!(order, Some(ShareOrder::Share { number: 4, read_only: true, .. })), "{order:?}");
            list.answered(served(4, Ok(())), now);
            let (None, over) = list.answered(mounted(4, Ok(())), now) else { panic!() };
            assert_eq!(over, ended(Outcome::Added, "/a/b"));
        }
        assert!(mounts().remove(7, mount("/a"), Instant::now()).is_none());
    }

    #[test]
    fn a_server_that_does_not_answer_is_not_waited_for() {
        let (mut list, now) = (mounts(), Instant::now());
        list.add(7, mount("/new"), tree(), now);
        assert!(matches!(list.give_up(now), (None, None)));
        let (Some(ShareOrder::Unshare { number: 2 }), None) = list.give_up(now + SERVING) else { panic!() };
        // The first answer is that to the first question.
        assert!(matches!(list.answered(served(2, Ok(())), now), (None, None)));
        let (None, Some(over)) = list.answered(served(2, Ok(())), now) else { panic!() };
        assert!(matches!(over.outcome, Outcome::NotAdded(_)));
        list.remove(7, mount("/data"), now);
        list.answered(mounted(0, Ok(())), now);
        let due = list.deadline().unwrap();
        let (None, Some(over)) = list.give_up(due) else { panic!() };
        let Outcome::RemovedBut(why) = over.outcome else { panic!() };
        assert!(why.contains("stop"), "{why}");
    }

    #[test]
    fn a_place_has_to_be_free_and_beside_the_others() {
        let list = mounts();
        for (target, why) in [
            ("new", "absolute"),
            ("/x/../y", "absolute"),
            ("/", "cannot be a mount target"),
            ("/data", "there is a mount at /data already"),
            ("/data/", "there is a mount at /data already"),
            ("/data/sub", "is in /data"),
            ("/a", "/a/b is in /a"),
        ] {
            let said = list.check(Path::new(target)).unwrap_err();
            assert!(said.contains(why), "{target}: {said}");
        }
        assert!(list.check(Path::new("/data2")).is_ok());
        assert!(list.check(Path::new(&format!("/{}", "x".repeat(4095)))).is_err());
        let full = Mounts::new((0..MOST_SHARES).map(|number| format!("/{number}").into()));
        assert!(full.check(Path::new("/data")).unwrap_err().contains("at most 64"));
    }
}
