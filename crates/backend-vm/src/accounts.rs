//! Who is known in a guest whose root is somebody's own: whom its `passwd` and `group` name, and the user that programs run as.

/// The largest `passwd` or `group` that is read of a root.
pub(crate) const MOST: u64 = 128 * 1024;

/// Adds those lines of `ours` to `theirs` whose name and number both are nobody's there. Fields are separated by colons: the name
/// first, the number third.
pub(crate) fn merged(theirs: &[u8], ours: &str) -> Vec<u8> {
    let mut whole = theirs.to_vec();
    if !whole.is_empty() && whole.last() != Some(&b'\n') {
        whole.push(b'\n');
    }
    for line in ours.lines() {
        let (name, number) = name_and_number(line.as_bytes());
        let is_known = theirs
            .split(|byte| *byte == b'\n')
            .map(name_and_number)
            .any(|(their_name, their_number)| their_name == name || their_number.is_some() && their_number == number);
        if !is_known {
            whole.extend_from_slice(line.as_bytes());
            whole.push(b'\n');
        }
    }
    whole
}

fn name_and_number(line: &[u8]) -> (Option<&[u8]>, Option<&[u8]>) {
    let mut fields = line.split(|byte| *byte == b':');
    (fields.next(), fields.nth(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "user:x:1000:1000:user:/home/user:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\n";

    #[test]
    fn a_user_that_a_root_does_not_know_is_added() {
        let theirs = b"root:x:0:0:root:/root:/bin/bash\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin";
        let text = String::from_utf8(merged(theirs, OURS)).unwrap();
        let names: Vec<&str> = text.lines().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(names, ["root", "_apt", "user"], "{text}");
        assert!(text.starts_with("root:x:0:0:root:/root:/bin/bash\n") && text.ends_with("/bin/sh\n"), "{text}");
        assert_eq!(merged(b"", OURS), OURS.as_bytes());
    }

    #[test]
    fn neither_a_name_nor_a_number_is_there_twice() {
        let theirs = b"root:x:0:0::/root:/bin/sh\nuser:x:1234:1234::/:/bin/sh\n";
        assert_eq!(merged(theirs, OURS), theirs);
        let theirs = b"admin:x:0:0::/root:/bin/sh\npostgres:x:1000:1000::/:/bin/sh\n";
        assert_eq!(merged(theirs, OURS), theirs);
        let garbage = b"\xff\n::\nroot\n";
        assert!(merged(garbage, OURS).starts_with(garbage));
    }
}
