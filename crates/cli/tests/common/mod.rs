//! Running the command line and looking at what comes out.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a run of the command line left behind.
pub(crate) struct Output {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The command line in an environment that does not depend on who runs the tests.
pub(crate) fn cofferdam(args: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cofferdam"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("COLUMNS", "80").stdin(Stdio::null()).args(args);
    // Nothing of the user who runs the tests; one for each user, since another's would not be trusted.
    let state = format!("{}/state-{}", env!("CARGO_TARGET_TMPDIR"), rustix::process::geteuid().as_raw());
    command.env("XDG_STATE_HOME", state);
    command
}

/// Runs it in a fresh directory.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn run(args: &[impl AsRef<OsStr>]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    run_in(dir.path(), args)
}

pub(crate) fn run_in(dir: &Path, args: &[impl AsRef<OsStr>]) -> Output {
    finish(cofferdam(args).current_dir(dir), b"")
}

pub(crate) fn finish(command: &mut Command, stdin: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The program may end without having read: that is not the test's affair.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Output {
        status: std::os::unix::process::ExitStatusExt::signal(&output.status)
            .map_or_else(|| output.status.code().unwrap(), |s| -s),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
