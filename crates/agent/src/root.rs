//! The root that the kernel's command line names, if it does: `cofferdam.root=KIND:SOURCE[,rw]`.
//!
//! | Kind | Source |
//! |---|---|
//! | `disk` | a block device below `/dev`, with ext4 |
//! | `9p`, `virtiofs` | the tag of a share |
//!
//! Without `rw` it is never written: an overlay in memory takes what programs change. Without the word the initramfs is the root.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use cofferdam_initramfs::Group;
use rustix::mount::MountFlags;

use crate::boot::{Own, TAKEN_ALONG, make_directory};
use crate::words::{Doing, Trouble};

const WORD: &str = "cofferdam.root=";
const LOWER: &str = "/cofferdam/lower";
const MEMORY: &str = "/cofferdam/memory";
const ROOT: &str = "/cofferdam/root";
/// A driver makes its device within milliseconds; together ten seconds.
const LOOKS: usize = 10_000;
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, PartialEq, Eq)]
struct Root<'a> {
    kind: Kind,
    source: &'a str,
    writable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disk,
    Plan9,
    Virtiofs,
}

/// Enters the root that is named.
pub(crate) fn enter(own: &Own) -> Result<(), Trouble> {
    let line = fs::read_to_string("/proc/cmdline").doing(|| "read /proc/cmdline".to_owned())?;
    let Some(word) = line.split_whitespace().find_map(|word| word.strip_prefix(WORD)) else { return Ok(()) };
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let root =
        parse(word).ok_or_else(invalid).doing(|| format!("understand {WORD}{word} of the kernel's command line"))?;
    let place = if root.writable { ROOT } else { LOWER };
    mount(own, &root, place)?;
    if !root.writable {
        cover(own)?;
    }
    move_in()
}

fn parse(word: &str) -> Option<Root<'_>> {
    let (kind, source) = word.split_once(':')?;
    let kind = match kind {
        "disk" => Kind::Disk,
        "9p" => Kind::Plan9,
        "virtiofs" => Kind::Virtiofs,
        _ => return None,
    };
    let (source, writable) = source.strip_suffix(",rw").map_or((source, false), |source| (source, true));
    (!source.is_empty() && !source.contains('/')).then_some(Root { kind, source, writable })
}

fn mount(own: &Own, root: &Root<'_>, place: &str) -> Result<(), Trouble> {
    make_directory(Path::new(place))?;
    let (group, kind, source, options) = match root.kind {
        Kind::Disk => (Group::Disk, "ext4", format!("/dev/{}", root.source), None),
        Kind::Plan9 => {
            (Group::Plan9, "9p", root.source.to_owned(), Some(c"trans=virtio,version=9p2000.L,msize=262144"))
        }
        Kind::Virtiofs => (Group::Virtiofs, "virtiofs", root.source.to_owned(), None),
    };
    own.load(group)?;
    if let Kind::Disk = root.kind {
        for _ in 0..LOOKS {
            if Path::new(&source).exists() {
                break;
            }
            thread::sleep(PAUSE);
        }
    }
    let flags = if root.writable { MountFlags::empty() } else { MountFlags::RDONLY };
    rustix::mount::mount(&source, place, kind, flags, options)
        .doing(|| format!("mount the root, {source} of type {kind}"))
}

/// Lays memory over what may not be written.
fn cover(own: &Own) -> Result<(), Trouble> {
    own.load(Group::Overlay)?;
    make_directory(Path::new(MEMORY))?;
    let doing = || "lay memory over the root".to_owned();
    rustix::mount::mount("tmpfs", MEMORY, "tmpfs", MountFlags::empty(), Some(c"mode=0755")).doing(doing)?;
    for directory in ["upper", "work"] {
        make_directory(&Path::new(MEMORY).join(directory))?;
    }
    make_directory(Path::new(ROOT))?;
    let options = c"lowerdir=/cofferdam/lower,upperdir=/cofferdam/memory/upper,workdir=/cofferdam/memory/work";
    rustix::mount::mount("overlay", ROOT, "overlay", MountFlags::empty(), Some(options)).doing(doing)
}

/// Takes what is mounted along and makes the root this process's own. The initramfs cannot be left by pivot_root(2); it stays
/// below, where nothing leads.
fn move_in() -> Result<(), Trouble> {
    for place in TAKEN_ALONG {
        let target = Path::new(ROOT).join(place.trim_start_matches('/'));
        make_directory(&target)?;
        rustix::mount::mount_move(place, &target).doing(|| format!("move {place} into the root"))?;
    }
    let enter = || -> rustix::io::Result<()> {
        rustix::process::chdir(ROOT)?;
        rustix::mount::mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    enter().doing(|| "enter the root".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_what_names_a_root() {
        assert_eq!(parse("disk:vda"), Some(Root { kind: Kind::Disk, source: "vda", writable: false }));
        assert_eq!(parse("9p:root,rw"), Some(Root { kind: Kind::Plan9, source: "root", writable: true }));
        assert_eq!(parse("virtiofs:root"), Some(Root { kind: Kind::Virtiofs, source: "root", writable: false }));
        for word in ["", "vda", "nfs:x", "disk:", "disk:,rw", "disk:../x"] {
            assert_eq!(parse(word), None, "{word}");
        }
    }
}
