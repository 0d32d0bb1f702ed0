//! Every process of ours is killed at every stage, and nothing is left.
//!
//! One test at a time in this file: it looks at what the machine has before and after.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_world_tests::{Marked, Process, World, long};

/// Twice the time in which a sandbox is to be up, so that kills fall on starting and on running ones.
const START: Duration = Duration::from_millis(120);
/// How long the rest may take to go. It needs milliseconds; the machine may be busy.
const AFTERMATH: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_left_when_any_process_is_killed_at_any_moment() {
    let world = World::shared();
    let seed = u64::from(std::process::id());
    let mut random = Random(seed | 1);
    println!("seed {seed}");
    let before = left_on_the_machine(world);
    for round in 0..if long() { 200 } else { 20 } {
        let marked = world.marked();
        let sandbox = world.sandbox().flags("--quiet");
        let mut child = sandbox.start(&["sleep", marked.word()]);
        thread::sleep(random.up_to(START));
        let asked_to_stop = random.up_to(Duration::from_nanos(3)).is_zero();
        if asked_to_stop {
            supervisor(&marked, &child).inspect(|supervisor| kill("-TERM", supervisor.pid));
            thread::sleep(random.up_to(START / 4));
        }
        let ours: Vec<Process> = marked.processes().into_iter().filter(|process| process.is_ours).collect();
        let victim = random.one_of(&ours);
        let was = victim.map_or_else(|| "nobody".to_owned(), |victim| format!("{victim:?} of {ours:?}"));
        victim.inspect(|victim| kill("-KILL", victim.pid));
        // A program whose gateway died goes on without a network; its supervisor is the next to go.
        if !is_gone_within(&marked, AFTERMATH / 10) {
            supervisor(&marked, &child).inspect(|supervisor| kill("-KILL", supervisor.pid));
        }
        let gone = is_gone_within(&marked, AFTERMATH);
        let rest = marked.processes();
        end(&mut child, &rest);
        assert!(gone, "round {round}, seed {seed}: after the death of {was} there is still {rest:?}");
    }
    // The record of a run that was killed stays; what was half made of one is swept by the next.
    world.sandbox().flags("--no-net").run(&["true"]).exits(0);
    let after = left_on_the_machine(world);
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.is_empty(), "left behind: {new:?}");
}

#[test]
fn the_death_of_the_supervisor_ends_the_program() {
    let world = World::shared();
    let marked = world.marked();
    let mut child = world.sandbox().flags("--quiet").start(&["sleep", marked.word()]);
    assert!(wait_until(AFTERMATH, || marked.processes().iter().any(|process| process.command.starts_with("sleep "))));
    supervisor(&marked, &child).inspect(|supervisor| kill("-KILL", supervisor.pid));
    let gone = is_gone_within(&marked, AFTERMATH);
    let rest = marked.processes();
    end(&mut child, &rest);
    assert!(gone, "still there: {rest:?}");
}

/// The one that the test started: the only child of `timeout` of ours.
fn supervisor(marked: &Marked, child: &Child) -> Option<Process> {
    marked.processes().into_iter().find(|process| process.is_ours && process.parent == child.id())
}

fn is_gone_within(marked: &Marked, limit: Duration) -> bool {
    wait_until(limit, || marked.processes().is_empty())
}

fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Leaves nothing of a failed round to the next one.
fn end(child: &mut Child, rest: &[Process]) {
    rest.iter().for_each(|process| kill("-KILL", process.pid));
    // It has ended or was just killed; how does not matter here.
    let _: io::Result<_> = child.wait();
}

fn kill(signal: &str, pid: u32) {
    // A process that has gone in the meantime is what a kill wants.
    let _: io::Result<_> = Command::new("kill").args([signal, &pid.to_string()]).output();
}

/// What a sandbox could forget: interfaces and addresses of the host, mounts, and files where programs put them.
fn left_on_the_machine(world: &World) -> BTreeSet<String> {
    let links = world.on_the_host(&["ip", "-oneline", "address"]).stdout();
    // The lifetimes of addresses count down.
    let links = links.lines().map(|line| format!("address {}", line.split("valid_lft").next().unwrap_or(line)));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Mounts of the other kinds are other people's business; a pinned namespace is not.
    let pinned: Vec<String> =
        mounts.lines().filter(|line| line.contains(" - nsfs ")).map(|line| format!("mount {line}")).collect();
    let mut left: BTreeSet<String> = links.chain(pinned).collect();
    let home = world.web_root().join("../home");
    for folder in [home.as_path(), "/dev/shm".as_ref(), "/run".as_ref(), "/tmp".as_ref(), "/var/tmp".as_ref()] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_state = folder == home && name == ".local";
            if (folder == home && !is_state) || (name.contains("cofferdam") && !name.starts_with("cofferdam-world-")) {
                left.insert(format!("file {}/{name}", folder.display()));
            }
        }
    }
    // Of records whole ones alone.
    let state = home.join(".local/state/cofferdam");
    for (folder, whole) in [
        (home.join(".local"), "state"),
        (home.join(".local/state"), "cofferdam"),
        (state.clone(), "runs"),
        (state.join("runs"), "2"),
    ] {
        let names = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned()).filter(|name| !name.starts_with(whole));
        left.extend(names.map(|name| format!("file {}/{name}", folder.display())));
    }
    left
}

/// A generator of small pseudo-random numbers (xorshift, Marsaglia 2003); reproducible from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From zero to just below `limit`.
    fn up_to(&mut self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.next() % nanos)
    }

    fn one_of<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(choices.len()).ok().filter(|count| *count > 0)?;
        choices.get(usize::try_from(self.next() % count).ok()?)
    }
}
