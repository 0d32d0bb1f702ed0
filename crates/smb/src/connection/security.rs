//! Security descriptors (MS-DTYP 2.4.6), as far as Linux's client speaks of owners and modes with them.
//!
//! A mode is an entry of the list of rights, for nobody: `S-1-5-88-3-mode`. That is how `mount -o modefromsid` reads and sets modes.

use crate::Owner;
use crate::share::Facts;
use crate::wire::bytes::{Put, Reader, len16, len32, patch};

const OWNER: u32 = 1;
const GROUP: u32 = 2;
const DACL: u32 = 4;

/// Most entries of a list that are looked at.
const MOST_ENTRIES: u16 = 32;

/// `S-1-22-1-uid`.
pub(super) fn unix_user(uid: u32, out: &mut Vec<u8>) {
    sid(22, &[1, uid], out);
}

/// `S-1-22-2-gid`.
pub(super) fn unix_group(gid: u32, out: &mut Vec<u8>) {
    sid(22, &[2, gid], out);
}

fn sid(authority: u8, parts: &[u32], out: &mut Vec<u8>) {
    out.u8(1);
    out.u8(u8::try_from(parts.len()).unwrap_or(0));
    out.put(&[0, 0, 0, 0, 0, authority]);
    for part in parts {
        out.u32(*part);
    }
}

/// The parts of a file's descriptor that `wanted` asks for.
pub(super) fn descriptor(owner: Owner, facts: &Facts, wanted: u32, out: &mut Vec<u8>) {
    const SELF_RELATIVE: u16 = 0x8000;
    const DACL_PRESENT: u16 = 0x4;
    const ALLOWED: u8 = 0;
    const DENIED: u8 = 1;
    const EVERYTHING: u32 = 0x001f_01ff;
    let start = out.len();
    let (uid, gid) = owner.of(facts);
    out.u8(1);
    out.u8(0);
    out.u16(SELF_RELATIVE | if wanted & DACL == 0 { 0 } else { DACL_PRESENT });
    out.put(&[0; 16]);
    let mut place = |at: usize, part: Vec<u8>| {
        let offset = len32(out.len().saturating_sub(start));
        patch(out, start + at, &offset.to_le_bytes());
        out.put(&part);
    };
    let built = |build: &dyn Fn(&mut Vec<u8>)| {
        let mut part = Vec::new();
        build(&mut part);
        part
    };
    if wanted & OWNER != 0 {
        place(4, built(&|part| unix_user(uid, part)));
    }
    if wanted & GROUP != 0 {
        place(8, built(&|part| unix_group(gid, part)));
    }
    if wanted & DACL != 0 {
        let entry = |kind: u8, rights: u32, sid: &dyn Fn(&mut Vec<u8>)| {
            let sid = built(sid);
            let mut entry = vec![kind, 0];
            entry.u16(len16(8 + sid.len()));
            entry.u32(rights);
            entry.put(&sid);
            entry
        };
        // The mode, which takes nothing away; and what the host lets us do, everybody in the guest may do who may use the mount.
        let entries = [
            entry(DENIED, 0, &|part| sid(5, &[88, 3, facts.mode], part)),
            entry(ALLOWED, EVERYTHING, &|part| sid(1, &[0], part)),
        ];
        let mut list = vec![2, 0];
        list.u16(len16(8 + entries.iter().map(Vec::len).sum::<usize>()));
        list.u16(len16(entries.len()));
        list.u16(0);
        list.put(&entries.concat());
        place(16, list);
    }
}

/// The mode in a descriptor, if there is one.
pub(super) fn mode(descriptor: &[u8]) -> Option<u32> {
    let at = usize::try_from(Reader::at(descriptor, 16).u32()?).ok().filter(|at| *at != 0)?;
    let mut list = Reader::at(descriptor, at);
    let (_revision, _size, count, _reserved) = (list.u16()?, list.u16()?, list.u16()?, list.u16()?);
    for _ in 0..count.min(MOST_ENTRIES) {
        let (_kind_and_flags, size, _rights) = (list.u16()?, list.u16()?, list.u32()?);
        let mut sid = Reader::new(list.take(usize::from(size).checked_sub(8)?)?);
        if sid.array()? == [1, 3, 0, 0, 0, 0, 0, 5] && (sid.u32()?, sid.u32()?) == (88, 3) {
            return sid.u32();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::share::{FileTime, Kind};

    #[test]
    fn a_mode_that_is_told_is_understood() {
        let time = FileTime(0);
        let facts = Facts {
            kind: Kind::File,
            mode: 0o640,
            links: 1,
            uid: 1000,
            gid: 1000,
            size: 0,
            allocated: 0,
            inode: 1,
            device: (0, 0),
            accessed: time,
            modified: time,
            changed: time,
            created: time,
        };
        let owner = Owner::new(0, 0);
        let mut out = vec![9; 7];
        descriptor(owner, &facts, OWNER | GROUP | DACL, &mut out);
        assert_eq!(mode(&out[7..]), Some(0o640));
        let mut owners = Vec::new();
        descriptor(owner, &facts, OWNER | GROUP, &mut owners);
        assert_eq!(mode(&owners), None, "there is no list");
        for end in 0..out.len() - 7 {
            let _ = mode(&out[7..7 + end]);
        }
    }

    proptest! {
        #[test]
        fn no_descriptor_stops_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = mode(&bytes);
        }
    }
}
