//! Keys as terminals send them.

/// What a person has pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Tab,
    BackTab,
    Enter,
    Escape,
    /// ^C or ^D.
    Leave,
    /// ^L.
    Redraw,
}

/// The keys in what was read at once. Terminals write a key whole, so an escape character with nothing behind it is that key;
/// what is none of these is passed over.
pub(super) fn keys(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let [first, behind @ ..] = rest {
        rest = behind;
        keys.extend(match first {
            0x1b => {
                let (key, behind) = escape(behind);
                rest = behind;
                key
            }
            b'\t' => Some(Key::Tab),
            b'\r' | b'\n' => Some(Key::Enter),
            0x03 | 0x04 => Some(Key::Leave),
            0x0c => Some(Key::Redraw),
            byte if byte.is_ascii_graphic() || *byte == b' ' => Some(Key::Char(char::from(*byte))),
            _ => None,
        });
    }
    keys
}

/// The key of a sequence that begins with an escape character, and what comes behind it.
fn escape(sequence: &[u8]) -> (Option<Key>, &[u8]) {
    match sequence {
        [b'[', rest @ ..] => {
            // Parameters, then one letter or `~` (ECMA-48 §5.4).
            let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte));
            let Some((parameters, [last, behind @ ..])) = end.map(|end| rest.split_at(end)) else { return (None, &[]) };
            let key = match (parameters, last) {
                (_, b'A') => Some(Key::Up),
                (_, b'B') => Some(Key::Down),
                (_, b'Z') => Some(Key::BackTab),
                (b"5", b'~') => Some(Key::PageUp),
                (b"6", b'~') => Some(Key::PageDown),
                (_, _) => None,
            };
            (key, behind)
        }
        [b'O', b'A', behind @ ..] => (Some(Key::Up), behind),
        [b'O', b'B', behind @ ..] => (Some(Key::Down), behind),
        [b'O', _, behind @ ..] => (None, behind),
        other => (Some(Key::Escape), other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_terminals_write_them() {
        for (bytes, expected) in [
            (&b"aD?"[..], vec![Key::Char('a'), Key::Char('D'), Key::Char('?')]),
            (b"\x1b[A\x1b[B\x1bOA\x1bOB", vec![Key::Up, Key::Down, Key::Up, Key::Down]),
            (b"\x1b[1;5A\x1b[5~\x1b[6~\x1b[Z\t", vec![Key::Up, Key::PageUp, Key::PageDown, Key::BackTab, Key::Tab]),
            (b"\x1b", vec![Key::Escape]),
            (b"\x1b\x1b[A", vec![Key::Escape, Key::Up]),
            (b"\r\n", vec![Key::Enter, Key::Enter]),
            (b"\x03\x04\x0c", vec![Key::Leave, Key::Leave, Key::Redraw]),
            (b"\x1b[200~ q", vec![Key::Char(' '), Key::Char('q')]),
            (b"\x00\x7f\xff\xc3\xa9\x1b[9", vec![]),
        ] {
            assert_eq!(keys(bytes), expected, "{bytes:?}");
        }
    }
}
