//! Terminals: making one for a program, and putting the user's own into raw mode and back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

/// The two ends of a pseudoterminal.
#[derive(Debug)]
pub struct Pty {
    /// The end that plays the keyboard and the screen.
    pub controller: OwnedFd,
    /// The end a program has as its terminal.
    pub terminal: OwnedFd,
}

/// Makes a pseudoterminal in the `devpts` of this process's mount namespace.
///
/// # Errors
/// Those of opening `/dev/ptmx` and its other end.
pub fn open_pty() -> io::Result<Pty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let controller = rustix::fs::open("/dev/ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&controller)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&controller, flags)?;
    Ok(Pty { controller, terminal })
}

/// Makes a terminal the controlling terminal of this process, which leads a session without one.
///
/// # Errors
/// Those of `TIOCSCTTY`.
pub fn control(terminal: impl AsFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(terminal)?)
}

/// Copies the size of one terminal to another. Does nothing when the first is no terminal.
///
/// # Errors
/// Those of `TIOCSWINSZ`.
pub fn copy_size(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let Ok(size) = rustix::termios::tcgetwinsize(from) else { return Ok(()) };
    set_size(to, size)
}

/// Sets the size of a terminal.
///
/// # Errors
/// Those of `TIOCSWINSZ`.
pub fn set_size(terminal: impl AsFd, size: Winsize) -> io::Result<()> {
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// A terminal in raw mode; dropping this puts back what was there before.
#[derive(Debug)]
pub struct RawMode<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> RawMode<F> {
    /// Puts a terminal into raw mode. `None` when it is no terminal.
    ///
    /// # Errors
    /// Those of tcsetattr(3).
    pub fn enter(terminal: F) -> io::Result<Option<Self>> {
        let Ok(before) = rustix::termios::tcgetattr(&terminal) else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl<F: AsFd> Drop for RawMode<F> {
    fn drop(&mut self) {
        // A terminal that has gone away needs nothing put back.
        let _gone = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_carries_bytes_and_size() {
        let pty = open_pty().unwrap();
        set_size(&pty.controller, Winsize { ws_row: 12, ws_col: 34, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let size = rustix::termios::tcgetwinsize(&pty.terminal).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (12, 34));
        rustix::io::write(&pty.terminal, b"hello").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&pty.controller, &mut buffer).unwrap(), 5);
    }

    #[test]
    fn raw_mode_ends_when_dropped() {
        let pty = open_pty().unwrap();
        let before = rustix::termios::tcgetattr(&pty.terminal).unwrap();
        let raw = RawMode::enter(&pty.terminal).unwrap().unwrap();
        let during = rustix::termios::tcgetattr(&pty.terminal).unwrap();
        assert_ne!(before.local_modes, during.local_modes);
        drop(raw);
        let after = rustix::termios::tcgetattr(&pty.terminal).unwrap();
        assert_eq!(before.local_modes, after.local_modes);
    }

    #[test]
    fn a_pipe_has_no_raw_mode() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(RawMode::enter(&reader).unwrap().is_none());
    }
}
