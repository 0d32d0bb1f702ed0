//! A sandbox that is there.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_model::{Event, PublishedPort};
use cofferdam_policy::file;
use serde::Deserialize;

use crate::Error;
use crate::builder::{Made, SandboxBuilder};
use crate::error::{Refusal, io_error};
use crate::inspected::{Inspected, Mounted};
use crate::logs::Logs;
use crate::network::{Network, wire_of_change, without_ports};
use crate::program::{Program, words};
use crate::run::Run;

/// Somewhat more bytes of events than are recorded of one session.
const MOST_EVENTS: usize = 400 << 20;

/// A sandbox that stays until it is removed: with its files, and while it runs with its network and its runs.
///
/// This is a name for one and cheap to clone; dropping it changes nothing. It belongs to the user who made it, and is found again
/// with [`Sandbox::open`], from other programs too.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Named>);

#[derive(Debug)]
struct Named {
    program: Program,
    name: String,
    notices: Vec<String>,
}

impl Sandbox {
    /// A sandbox with this name: lower-case letters, digits, dots, dashes and underscores.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder::new(name.into(), None)
    }

    /// A sandbox with a name that no other has.
    pub fn unnamed() -> SandboxBuilder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Two processes with one number and one moment would have to be on two machines that share a home.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Sandbox::builder(format!("run-{}-{now:x}-{number}", std::process::id()))
    }

    /// The sandbox that has this name, running or not.
    ///
    /// # Errors
    /// When there is none.
    pub async fn open(name: impl Into<String>) -> Result<Sandbox, Error> {
        Sandbox::builder(name).open().await
    }

    /// Every sandbox of this user.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn list() -> Result<Vec<Inspected>, Error> {
        Program::find(None)?.ask(&words(["ls", "--json"]), None).await
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What a person should be told of how it was made: limits that do not hold, ports that nobody reaches.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.0.notices
    }

    pub(crate) fn of(program: Program, name: String, notices: Vec<String>) -> Sandbox {
        Sandbox(Arc::new(Named { program, name, notices }))
    }

    pub(crate) fn program(&self) -> &Program {
        &self.0.program
    }

    /// A program to run in it, found in the sandbox's `PATH`. No shell looks at it.
    pub fn run(&self, program: impl Into<String>) -> Run {
        Run::new(self.clone(), program.into())
    }

    /// Starts it when it is stopped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(&self) -> Result<(), Error> {
        self.program().ask(&self.words(["start", "--json"]), None).await.map(|_: Made| ())
    }

    /// Stops it: asks everything that runs in it to end, and ends it after `grace`. Its files stay.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&self, grace: Duration) -> Result<(), Error> {
        /// As long as the program takes: seven weeks.
        const LONGEST: u128 = u32::MAX as u128;
        let grace = match grace.as_millis() {
            0 => "0s".to_owned(),
            milliseconds => format!("{}ms", milliseconds.min(LONGEST)),
        };
        self.change(self.words(["stop", "--json", "--time", &grace])).await
    }

    /// Removes it with its files; one that runs is ended at once. There is no way back.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self) -> Result<(), Error> {
        self.change(self.words(["rm", "--json", "--force"])).await
    }

    /// Looks at it.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn inspect(&self) -> Result<Inspected, Error> {
        self.program().ask(&self.words(["inspect", "--json"]), None).await
    }

    /// Gives it another policy, also while it runs: what the new one does not allow is ended, in runs with a network of their own
    /// too. Comes back when it holds everywhere. Ports stay what they are, and so do limits and resolvers that are the usual ones in
    /// what `fill` returns.
    ///
    /// # Errors
    /// When it cannot be used; then nothing has changed.
    pub async fn set_policy(&self, fill: impl FnOnce(Network) -> Network) -> Result<(), Error> {
        let network = without_ports(fill(Network::default()).resolve(None)?)?;
        let mut words = self.words(["policy", "set", "--json"]);
        words.push("-".into());
        let json = wire_of_change(&network).to_string().into_bytes();
        self.program().ask(&words, Some(json)).await.map(|_: serde::de::IgnoredAny| ())
    }

    /// Publishes a port while it runs, written as `[BIND:]HOST:GUEST[/udp]`; ranges are several. Returns them as they are, with
    /// numbers that the system has picked. They last until it stops.
    ///
    /// # Errors
    /// When one of them cannot be had; none is published then.
    pub async fn publish(&self, port: &str) -> Result<Vec<PublishedPort>, Error> {
        file::parse_port(port)?;
        let mut words = self.words(["ports", "add", "--json"]);
        words.push(port.into());
        self.program().ask(&words, None).await
    }

    /// Withdraws a port. Its connections go on.
    ///
    /// # Errors
    /// When it is not published.
    pub async fn withdraw(&self, port: PublishedPort) -> Result<(), Error> {
        let mut words = self.words(["ports", "rm", "--json"]);
        words.push(format!("{}/{}", port.host(), port.protocol.word()).into());
        self.program().ask(&words, None).await.map(|_: Vec<PublishedPort>| ())
    }

    /// Its published ports.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn ports(&self) -> Result<Vec<PublishedPort>, Error> {
        self.program().ask(&self.words(["ports", "ls", "--json"]), None).await
    }

    /// Mounts a directory of this machine at a path of a virtual machine, while it runs. It holds over stop and start. Where the
    /// sandbox is stopped it has the mount from its next start on.
    ///
    /// # Errors
    /// When it runs and is no virtual machine with a network, has a mount there or around it, or does not mount it.
    pub async fn add_mount(
        &self,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        read_only: bool,
    ) -> Result<(), Error> {
        let mut mount = std::path::absolute(source).map_err(io_error("find the directory"))?.into_os_string();
        mount.push(":");
        mount.push(target.as_ref());
        mount.push(if read_only { ":ro" } else { ":rw" });
        let mut words = self.words(["mount", "add", "--json"]);
        words.push(mount);
        self.program().ask(&words, None).await.map(|_: serde::de::IgnoredAny| ())
    }

    /// Takes away what is mounted at a path of a virtual machine, while it runs; of any sandbox, for its next start, when it is stopped.
    ///
    /// # Errors
    /// When nothing is mounted there; and when the guest could not unmount it, in which case it is shown nothing there all the same.
    pub async fn remove_mount(&self, target: impl AsRef<Path>) -> Result<(), Error> {
        let mut words = self.words(["mount", "rm", "--json"]);
        words.push(target.as_ref().into());
        self.program().ask(&words, None).await.map(|_: serde::de::IgnoredAny| ())
    }

    /// What of this machine it is shown besides the directory of its project.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn mounts(&self) -> Result<Vec<Mounted>, Error> {
        self.program().ask(&self.words(["mount", "ls", "--json"]), None).await
    }

    /// What its main command has written, as far as it is kept: the last 8 to 16 MiB. What the sandbox itself had to say is between
    /// that, in lines that begin with `cofferdam: `; a program can write such lines too.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn logs(&self) -> Result<Vec<u8>, Error> {
        let said = self.program().say(&self.words(["logs"]), None, None).await?;
        if said.status == Some(0) {
            return Ok(said.stdout);
        }
        // Who is not there says so with its kind.
        self.inspect().await?;
        Err(said.unexpected(""))
    }

    /// The same as a stream, which ends with the sandbox.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn follow_logs(&self) -> Result<Logs, Error> {
        self.inspect().await?;
        Logs::of(self.program(), &self.words(["logs", "--follow"]))
    }

    /// What its gateway has reported since the newest start, oldest first, as far as it is recorded: the last 384 MiB of JSON, all
    /// of which is read at once. Runs with a network of their own have a gateway of their own, whose denials are in their
    /// [`Output`](crate::Output).
    ///
    /// # Errors
    /// When the sandbox is not there, or they cannot be read.
    pub async fn events(&self) -> Result<Vec<Event>, Error> {
        self.inspect().await?;
        let said = self.program().say(&self.words(["log", "--json"]), None, Some(MOST_EVENTS)).await?;
        if said.status == Some(0) {
            // A line that this version does not understand is of a later one.
            let lines = said.stdout.split(|byte| *byte == b'\n');
            return Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect());
        }
        let refusal = said.refusal();
        // It has not been started, or is not recorded.
        if matches!(refusal, Error::Absent { .. }) { Ok(Vec::new()) } else { Err(refusal) }
    }

    async fn change(&self, words: Vec<OsString>) -> Result<(), Error> {
        let said = self.program().say(&words, None, None).await?;
        match serde_json::from_slice::<Vec<Became>>(&said.stdout).map(|mut list| list.pop()) {
            Ok(Some(Became::Refused(refusal))) => Err(refusal.into()),
            Ok(Some(Became::Done {})) if said.status == Some(0) => Ok(()),
            Ok(_) | Err(_) => Err(said.unexpected("")),
        }
    }

    /// A verb with its options, and this sandbox.
    pub(crate) fn words<const N: usize>(&self, verb: [&str; N]) -> Vec<OsString> {
        let mut all = words(verb);
        all.extend(words(["--", self.name()]));
        all
    }
}

/// What became of a sandbox.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Became {
    Refused(Refusal),
    Done {},
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_may_move_between_threads() {
        fn moves<T: Send>(_: T) {}
        let sandbox =
            || Sandbox(Arc::new(Named { program: Program::at("/none"), name: "s".to_owned(), notices: Vec::new() }));
        moves(Sandbox::builder("s").network(|n| n.adjust(|_| {})).create());
        moves(Sandbox::open("s"));
        moves(sandbox().run("true").output());
        moves(sandbox().run("true").status());
        moves(async move { sandbox().run("true").spawn().await?.wait().await });
        moves(async move { sandbox().put("a", "b").await });
        moves(async move { sandbox().set_policy(|n| n).await });
        moves(async move { sandbox().events().await });
        moves(Sandbox::unnamed().with(async |sandbox| sandbox.run("true").output().await));
        moves(async move { Sandbox::unnamed().with(async |sandbox| sandbox.run("true").output().await).await });
    }

    #[test]
    fn what_became_of_a_sandbox_is_read() {
        let read = |json: &str| serde_json::from_str::<Vec<Became>>(json).unwrap().pop();
        assert!(matches!(read(r#"[{"name": "a"}]"#), Some(Became::Done {})));
        assert!(matches!(
            read(r#"[{"name": "a", "error": "no", "kind": "absent", "exit_status": 1}]"#),
            Some(Became::Refused(_))
        ));
    }
}
