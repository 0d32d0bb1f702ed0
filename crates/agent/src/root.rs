//! The root that the kernel's command line names, if it does: `cofferdam.root=KIND:SOURCE[,rw]`.
//!
//! | Kind | Source |
//! |---|---|
//! | `disk` | a block device below `/dev`, with ext4; or with partitions, of which the first has it |
//! | `9p`, `virtiofs` | the tag of a share |
//!
//! Without `rw` it is never written: an overlay in memory takes what programs change, half of the memory or
//! `cofferdam.overlay=BYTES` at most. Without the word the initramfs is the root.

use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use cofferdam_initramfs::Group;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::boot::{Own, TAKEN_ALONG, make_directory};
use crate::disk::Disk;
use crate::words::{Doing, Trouble};

const WORD: &str = "cofferdam.root=";
const OVERLAY_WORD: &str = "cofferdam.overlay=";
const LOWER: &str = "/cofferdam/lower";
const MEMORY: &str = "/cofferdam/memory";
const ROOT: &str = "/cofferdam/root";
/// A driver makes its device within milliseconds; together ten seconds.
const LOOKS: usize = 10_000;
const PAUSE: Duration = Duration::from_millis(1);

/// How a share is mounted.
const PLAN9: &CStr = c"trans=virtio,version=9p2000.L,msize=512000,access=client";
/// What nobody writes is kept.
const PLAN9_READ_ONLY: &CStr = c"trans=virtio,version=9p2000.L,msize=512000,access=client,cache=loose";

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

/// Enters the root that is named, and says what is written to where it is covered.
pub(crate) fn enter(own: &Own) -> Result<Option<Disk>, Trouble> {
    let value = |of: &str| own.command_line.split_whitespace().find_map(|word| word.strip_prefix(of));
    let Some(word) = value(WORD) else { return Ok(None) };
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let root =
        parse(word).ok_or_else(invalid).doing(|| format!("understand {WORD}{word} of the kernel's command line"))?;
    let place = if root.writable { ROOT } else { LOWER };
    mount(own, &root, place)?;
    if !root.writable {
        cover(own, value(OVERLAY_WORD))?;
    }
    move_in()?;
    complete()?;
    Ok((!root.writable).then(Disk::new))
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
            let options = if root.writable { PLAN9 } else { PLAN9_READ_ONLY };
            (Group::Plan9, "9p", root.source.to_owned(), Some(options))
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
    let mount = |source: &str| rustix::mount::mount(source, place, kind, flags, options);
    let mut mounted = mount(&source);
    let first = format!("{source}1");
    // A disk with partitions is no file system.
    if let (Kind::Disk, Err(Errno::INVAL)) = (root.kind, mounted)
        && Path::new(&first).exists()
    {
        mounted = mount(&first);
    }
    mounted.doing(|| format!("mount the root, {source} of type {kind}"))
}

/// Lays memory over what may not be written.
fn cover(own: &Own, size: Option<&str>) -> Result<(), Trouble> {
    own.load(Group::Overlay)?;
    make_directory(Path::new(MEMORY))?;
    let doing = || "lay memory over the root".to_owned();
    let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
    let options = CString::new(format!("mode=0755{size}")).doing(doing)?;
    rustix::mount::mount("tmpfs", MEMORY, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).doing(doing)?;
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

/// Makes what files of the host's go into, and programs expect, where a root has it not.
fn complete() -> Result<(), Trouble> {
    make_directory(Path::new("/etc"))?;
    if Path::new("/tmp").symlink_metadata().is_err() {
        make_directory(Path::new("/tmp"))?;
        rustix::fs::chmod("/tmp", Mode::from_raw_mode(0o1777)).doing(|| "open /tmp to everybody".to_owned())?;
    }
    Ok(())
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
