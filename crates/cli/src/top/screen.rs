//! The terminal while the view has it.

use std::io::{self, Write};
use std::panic;
use std::sync::Arc;

use cofferdam_sys::tty::RawMode;

/// The other screen of a terminal, without a cursor (xterm's control sequences 1049 and 25).
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

type Hook = Box<dyn Fn(&panic::PanicHookInfo<'_>) + Sync + Send + 'static>;

/// A terminal with the view on it; dropping this leaves it as it was found.
pub(super) struct Screen {
    _raw: RawMode<io::Stdin>,
    hook: Arc<Hook>,
}

impl Screen {
    pub(super) fn enter() -> io::Result<Screen> {
        let raw = RawMode::enter(io::stdin())?.ok_or(io::ErrorKind::Unsupported)?;
        write(ENTER)?;
        // What a panic has to say is to be read on the screen that stays.
        let hook = Arc::new(panic::take_hook());
        let before = Arc::clone(&hook);
        panic::set_hook(Box::new(move |info| {
            let _gone = write(LEAVE);
            before(info);
        }));
        Ok(Screen { _raw: raw, hook })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _gone = write(LEAVE);
        if !std::thread::panicking() {
            let hook = Arc::clone(&self.hook);
            panic::set_hook(Box::new(move |info| hook(info)));
        }
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
