use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout};

use crate::Sandbox;

/// A server in a sandbox, for as long as this lives: its input ends with it, and that has to end the server.
#[derive(Debug)]
pub struct Served {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Served {
    /// Starts a program, and waits until it says `up`.
    ///
    /// # Panics
    ///
    /// When it says something else first, or ends.
    #[track_caller]
    #[must_use]
    pub fn start(sandbox: &Sandbox<'_>, command: &[&str]) -> Served {
        let mut child = sandbox.start(command);
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        output.read_line(&mut line).expect("the server's output can be read");
        if line != "up\n" {
            let mut errors = String::new();
            drop(child.stdin.take());
            let _ = child.stderr.take().expect("a pipe").read_to_string(&mut errors);
            panic!("the server did not come up: {line:?}\n{errors}");
        }
        Served { child, output }
    }

    /// Ends the server and returns what the sandbox said on its standard error.
    ///
    /// # Panics
    ///
    /// When it was ended before.
    #[must_use]
    pub fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let mut errors = String::new();
        let _ = self.output.read_to_string(&mut String::new());
        let _ = self.child.stderr.take().expect("a pipe").read_to_string(&mut errors);
        self.child.wait().expect("it was started");
        errors
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself; a test that has failed must not wait for ever.
        let _ = self.child.wait();
    }
}
