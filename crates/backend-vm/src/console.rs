//! What QEMU and the guest's console wrote last, for whoever wants to know why there is no guest any more.

/// How much is kept.
const KEPT: usize = 8 * 1024;

/// The longest excerpt that is shown.
const SHOWN: usize = 300;

/// The end of a stream of text.
#[derive(Debug, Default)]
pub(crate) struct Console {
    tail: Vec<u8>,
    /// Bytes that were written in all.
    taken: usize,
}

impl Console {
    /// More was written.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.taken = self.taken.wrapping_add(bytes.len());
        let surplus = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..surplus);
    }

    /// How much has been written.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// What a person should see of it: the line that says that the kernel has panicked, or the last one. On one line, and
    /// without control characters, since the guest writes it.
    pub(crate) fn excerpt(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.tail);
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        let panic = lines().find(|line| line.contains("Kernel panic") && !line.contains("end Kernel panic"));
        let line = panic.or_else(|| lines().next_back())?;
        // The kernel's clock says nothing to anybody here.
        let line = line.strip_prefix('[').and_then(|line| line.split_once("] ")).map_or(line, |(_, rest)| rest);
        let plain = line.chars().map(|c| if c.is_control() { ' ' } else { c });
        Some(plain.take(SHOWN).collect())
    }

    /// Whether the guest's kernel said that it cannot go on.
    pub(crate) fn tells_of_a_panic(&self) -> bool {
        String::from_utf8_lossy(&self.tail).contains("Kernel panic")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_panic_and_otherwise_the_last_line() {
        let mut console = Console::default();
        assert_eq!(console.excerpt(), None);
        console.take(b"booting\r\n\r\nqemu: no such \x1b[1mfile\r\n\n");
        assert_eq!(console.excerpt().unwrap(), "qemu: no such  [1mfile");
        assert!(!console.tells_of_a_panic());
        console.take(b"[    1.0] Kernel panic - not syncing: sysrq\r\n[ 1.1] more\n[ 2.0] ---[ end Kernel panic - not");
        assert_eq!(console.excerpt().unwrap(), "Kernel panic - not syncing: sysrq");
        assert!(console.tells_of_a_panic());
    }

    #[test]
    fn keeps_the_end_alone() {
        let mut console = Console::default();
        for _ in 0..100 {
            console.take(&[b'x'; 1000]);
        }
        console.take(b"\nlast");
        assert_eq!(console.tail.len(), KEPT);
        assert_eq!(console.excerpt().unwrap(), "last");
    }
}
