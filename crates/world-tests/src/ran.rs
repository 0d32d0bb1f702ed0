use std::process::Output;
use std::time::Duration;

/// What a program did, with checks that show all of it when they fail.
#[derive(Debug)]
pub struct Ran {
    command: String,
    output: Output,
    took: Duration,
}

impl Ran {
    pub(crate) fn new(command: String, output: Output, took: Duration) -> Ran {
        Ran { command, output, took }
    }

    /// The exit status; -1 for a program that a signal ended.
    #[must_use]
    pub fn status(&self) -> i32 {
        self.output.status.code().unwrap_or(-1)
    }

    /// What it wrote to its standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it wrote to its standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// How long it took, the sandbox's own start included.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Checks the exit status.
    ///
    /// # Panics
    ///
    /// When it is another one.
    #[track_caller]
    pub fn exits(&self, status: i32) -> &Ran {
        assert!(self.status() == status, "expected exit status {status}\n{self}");
        self
    }

    /// Checks that the program failed by itself: not by the sandbox (125 to 127), a signal or the test's patience.
    ///
    /// # Panics
    ///
    /// When it did not.
    #[track_caller]
    pub fn fails(&self) -> &Ran {
        assert!((1..=123).contains(&self.status()), "expected the program to fail\n{self}");
        self
    }

    /// Checks that the standard output holds `text`.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Ran {
        assert!(self.stdout().contains(text), "expected {text:?} on stdout\n{self}");
        self
    }

    /// Checks that the standard output does not hold `text`.
    ///
    /// # Panics
    ///
    /// When it does.
    #[track_caller]
    pub fn never_says(&self, text: &str) -> &Ran {
        assert!(!self.stdout().contains(text), "expected no {text:?} on stdout\n{self}");
        self
    }

    /// Checks that the standard error holds `text`.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[track_caller]
    pub fn complains(&self, text: &str) -> &Ran {
        assert!(self.stderr().contains(text), "expected {text:?} on stderr\n{self}");
        self
    }

    /// Checks that it was over within `limit`.
    ///
    /// # Panics
    ///
    /// When it was not.
    #[track_caller]
    pub fn within(&self, limit: Duration) -> &Ran {
        assert!(self.took <= limit, "expected the end within {limit:?}\n{self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "$ {}", self.command)?;
        writeln!(f, "{}, after {:.1?}", self.output.status, self.took)?;
        writeln!(f, "--- stdout\n{}", self.stdout())?;
        writeln!(f, "--- stderr\n{}", self.stderr())
    }
}
