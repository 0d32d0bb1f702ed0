use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Ran, World};

/// One `cofferdam run` on the world's host, before it starts.
///
/// The program's folder, the same inside and outside, holds `ca.pem`, the authority that the world's servers are
/// certified by, and `key`, which its sshd accepts.
#[derive(Debug)]
#[must_use]
pub struct Sandbox<'a> {
    world: &'a World,
    flags: Vec<OsString>,
    broken: Option<&'static str>,
    input: Vec<u8>,
    folder: PathBuf,
    patience: Duration,
    is_outside: bool,
}

impl<'a> Sandbox<'a> {
    pub(crate) fn new(world: &'a World, folder: PathBuf) -> Sandbox<'a> {
        Sandbox {
            world,
            flags: Vec::new(),
            broken: None,
            input: Vec::new(),
            folder,
            patience: Duration::from_secs(60),
            is_outside: false,
        }
    }

    /// Adds flags of `cofferdam run`, separated by spaces.
    pub fn flags(mut self, flags: &str) -> Sandbox<'a> {
        self.flags.extend(flags.split_whitespace().map(OsString::from));
        self
    }

    /// Takes something away from the machine first: a piece of shell that privilege runs in a private mount namespace.
    pub fn broken(mut self, shell: &'static str) -> Sandbox<'a> {
        self.broken = Some(shell);
        self
    }

    /// Not on the host: where the servers are.
    pub(crate) fn outside(mut self) -> Sandbox<'a> {
        self.is_outside = true;
        self
    }

    /// What the program reads from its standard input; nothing without this.
    pub fn input(mut self, input: &str) -> Sandbox<'a> {
        self.input = input.as_bytes().to_vec();
        self
    }

    /// How long the program may take before it is ended with exit status 124; a minute without this.
    pub fn patience(mut self, patience: Duration) -> Sandbox<'a> {
        self.patience = patience;
        self
    }

    /// The folder that the program starts in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a program to its end.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn run(self, command: &[&str]) -> Ran {
        let shown = format!("cofferdam run {:?} -- {command:?}", self.flags);
        self.finish(shown, &self.command(command))
    }

    /// Runs a piece of shell to its end.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn sh(self, script: &str) -> Ran {
        self.run(&["sh", "-ec", script])
    }

    /// Runs a program on a terminal of its own, which is typed on from [`Sandbox::input`].
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn on_a_terminal(self, command: &[&str]) -> Ran {
        let sandboxed =
            self.command(command).iter().map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ");
        let direct = Sandbox { flags: Vec::new(), ..self };
        direct.without_a_sandbox(&["script", "-qefc", &sandboxed, "/dev/null"])
    }

    /// Starts a program with pipes for its standard input, output and error.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[must_use]
    pub fn start(&self, command: &[&str]) -> Child {
        self.spawn(&self.command(command))
    }

    /// Runs a program on the host itself.
    ///
    /// # Panics
    ///
    /// When the world cannot be entered.
    #[track_caller]
    #[must_use]
    pub fn without_a_sandbox(self, command: &[&str]) -> Ran {
        let words: Vec<OsString> = command.iter().map(OsString::from).collect();
        self.finish(format!("{command:?}"), &words)
    }

    fn command(&self, command: &[&str]) -> Vec<OsString> {
        let mut words = Vec::new();
        if !self.world.is_direct() {
            words.extend([self.world.cofferdam().into(), "run".into()]);
            words.extend(self.flags.iter().cloned());
            words.push("--".into());
        }
        words.extend(command.iter().map(OsString::from));
        words
    }

    fn finish(&self, shown: String, command: &[OsString]) -> Ran {
        let started = Instant::now();
        let mut child = self.spawn(command);
        let mut stdin = child.stdin.take().expect("the child has a pipe for its input");
        let input = self.input.clone();
        // A thread, since a program may write more than a pipe holds before it reads.
        let writer = thread::spawn(move || stdin.write_all(&input).is_ok());
        let output = child.wait_with_output().expect("the child can be waited for");
        // A program that does not read its input has not failed by that.
        let _ = writer.join();
        Ran::new(shown, output, started.elapsed())
    }

    fn spawn(&self, command: &[OsString]) -> Child {
        let mut enter = match self.is_outside {
            true => self.world.enter_outside(self.patience),
            false => self.world.enter(self.patience),
        };
        if let Some(shell) = self.broken {
            enter.env("WORLD_BREAK", shell);
        }
        enter.args(command).current_dir(&self.folder);
        enter.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        enter.spawn().expect("the world can be entered: `timeout` and `nsenter` are installed")
    }
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
