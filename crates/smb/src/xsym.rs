//! The file that stands for a symbolic link where a server has none: `mfsymlinks` of Linux's client, after Minshall and French.
//!
//! ```text
//! XSym\n1234\n<MD5 of the target, in hexadecimal>\n<target>\n<spaces up to 1067 bytes>
//! ```

use std::fmt::Write as _;

use md5::{Digest, Md5};

/// How long such a file is, always.
pub(crate) const LENGTH: usize = 1067;

/// How long its target may be.
const LONGEST_TARGET: usize = 1024;

/// The target of such a file; `None` where anything is not as it has to be.
pub(crate) fn parse(content: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(content).ok()?;
    let rest = text.strip_prefix("XSym\n")?;
    let (length, rest) = rest.split_at_checked(4)?;
    let length: usize = length.parse().ok().filter(|length| (1..=LONGEST_TARGET).contains(length))?;
    let (digest, rest) = rest.strip_prefix('\n')?.split_at_checked(32)?;
    let (target, rest) = rest.strip_prefix('\n')?.split_at_checked(length)?;
    let padding = rest.strip_prefix('\n').unwrap_or(rest);
    let mut wanted = String::new();
    for byte in Md5::digest(target) {
        let _ = write!(wanted, "{byte:02x}");
    }
    let is_right = digest.eq_ignore_ascii_case(&wanted)
        && !target.contains('\0')
        && padding.bytes().all(|byte| byte == b' ')
        && content.len() == LENGTH;
    is_right.then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(target: &str) -> Vec<u8> {
        let digest: String = Md5::digest(target).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut content = format!("XSym\n{:04}\n{digest}\n{target}\n", target.len()).into_bytes();
        content.resize(1067, b' ');
        content
    }

    #[test]
    fn reads_its_target_and_nothing_that_is_not_quite_it() {
        let good = file("../a/ü");
        assert_eq!(parse(&good), Some("../a/ü"));
        assert_eq!(parse(&file(&"x".repeat(1024))[..1067]), Some("x".repeat(1024).as_str()));
        for at in [0, 4, 5, 9, 10, 45, 1066] {
            let mut other = good.clone();
            other[at] = b'!';
            assert_eq!(parse(&other), None, "{at}");
        }
        assert_eq!(parse(&good[..1066]), None);
        assert_eq!(parse(b"XSym\n99"), None);
    }
}
