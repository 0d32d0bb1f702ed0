//! Whether a guest's instructions are executed by KVM.
//!
//! A `/dev/kvm` that opens says little: in a virtual machine of somebody's cloud it may be there and hang at the first
//! instruction. So a machine like the one that is wanted is started with it, with a deadline, and what came of it is noted for as
//! long as this host has not been started anew.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::Kit;
use crate::arguments::{Accelerator, Architecture};

/// The device file of KVM.
const DEVICE: &str = "/dev/kvm";

/// The longest note that is read.
const LONGEST: u64 = 64 * 1024;

/// Which accelerator is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// KVM where it works.
    #[default]
    Best,
    Tcg,
}

/// Which accelerator is used, and why it is not the faster one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub accelerator: Accelerator,
    /// In words, for TCG.
    pub why: Option<String>,
}

/// Where it is noted whether KVM works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    path: PathBuf,
    boot_id: String,
}

/// What is noted: what was tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    boot_id: String,
    qemu: PathBuf,
    kernel: PathBuf,
    /// Why it does not work; `None`: it works.
    fault: Option<String>,
}

impl Cache {
    /// A note in this directory, which is there. `None` on a kernel that does not say which start of the host this is.
    #[must_use]
    pub fn new(directory: &Path) -> Option<Cache> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Cache { path: directory.join("kvm.json"), boot_id: boot_id.trim().to_owned() })
    }

    fn read(&self, kit: &Kit) -> Option<Option<String>> {
        let metadata = fs::symlink_metadata(&self.path).ok()?;
        if !metadata.is_file() || metadata.len() > LONGEST {
            return None;
        }
        let note: Note = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let same = note.boot_id == self.boot_id && note.qemu == kit.qemu && note.kernel == kit.kernel;
        same.then_some(note.fault)
    }

    /// A note that cannot be written has the next run try again.
    fn write(&self, kit: &Kit, fault: Option<&str>) {
        let note = Note {
            boot_id: self.boot_id.clone(),
            qemu: kit.qemu.clone(),
            kernel: kit.kernel.clone(),
            fault: fault.map(str::to_owned),
        };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        let new = self.path.with_extension(format!("{}.new", std::process::id()));
        // Nothing that lies there already is written to, nor what it leads to.
        let written =
            File::options().write(true).create_new(true).open(&new).and_then(|mut file| file.write_all(&text));
        if written.and_then(|()| fs::rename(&new, &self.path)).is_err() {
            let _absent = fs::remove_file(&new);
        }
    }
}

/// Chooses. `probe` starts a machine with KVM and says why that failed; it is asked once per start of this host.
pub(crate) fn choose(
    wish: Wish,
    kit: &Kit,
    cache: Option<&Cache>,
    probe: impl FnOnce() -> Result<(), String>,
) -> Choice {
    let tcg = |why: &str| Choice { accelerator: Accelerator::Tcg, why: Some(why.to_owned()) };
    if wish == Wish::Tcg {
        return tcg("it was asked for");
    }
    if Architecture::of_this_host() != Some(kit.architecture) {
        return tcg("the guest has another kind of processor than this machine");
    }
    if let Err(why) = may_open(Path::new(DEVICE)) {
        return tcg(&why);
    }
    let fault = match cache.and_then(|cache| cache.read(kit)) {
        Some(known) => known,
        None => {
            let fault = probe().err();
            if let Some(cache) = cache {
                cache.write(kit, fault.as_deref());
            }
            fault
        }
    };
    match fault {
        None => Choice { accelerator: Accelerator::Kvm, why: None },
        Some(fault) => tcg(&format!("a guest that was started with it did not come up ({fault})")),
    }
}

fn may_open(device: &Path) -> Result<(), String> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::open(device, flags, Mode::empty());
    let opened = opened.map_err(|errno| {
        if errno == rustix::io::Errno::NOENT {
            return format!("there is no {}", device.display());
        }
        format!("{} cannot be opened: {}", device.display(), io::Error::from(errno))
    })?;
    let is_for_all = rustix::fs::fstat(&opened).is_ok_and(|status| status.st_mode & 0o006 == 0o006);
    if rustix::process::geteuid().is_root() && !is_for_all {
        return Err(format!(
            "{0} is closed to the unprivileged user that a sandbox of root runs as; `chmod 0666 {0}` opens it",
            device.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kit() -> Kit {
        Kit {
            architecture: Architecture::X86_64,
            qemu: "/usr/bin/qemu".into(),
            kernel: "/k".into(),
            initrd: "/i".into(),
        }
    }

    #[test]
    fn a_note_holds_for_this_start_of_the_host_and_these_files() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path()).unwrap();
        assert_eq!(cache.read(&kit()), None);
        cache.write(&kit(), Some("no answer"));
        assert_eq!(cache.read(&kit()), Some(Some("no answer".to_owned())));
        assert_eq!(cache.read(&Kit { kernel: "/other".into(), ..kit() }), None);
        assert_eq!(Cache { boot_id: "another".to_owned(), ..cache.clone() }.read(&kit()), None);
        cache.write(&kit(), None);
        assert_eq!(cache.read(&kit()), Some(None));
        fs::write(folder.path().join("kvm.json"), "[").unwrap();
        assert_eq!(cache.read(&kit()), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn tcg_is_not_discussed() {
        let choice = choose(Wish::Tcg, &kit(), None, || panic!("nothing is tried"));
        assert_eq!(choice.accelerator, Accelerator::Tcg);
    }

    #[test]
    fn another_kind_of_processor_is_for_tcg() {
        let other = [Architecture::X86_64, Architecture::Aarch64];
        let other = other.into_iter().find(|architecture| Architecture::of_this_host() != Some(*architecture)).unwrap();
        let kit = Kit { architecture: other, ..kit() };
        let choice = choose(Wish::Best, &kit, None, || panic!("nothing is tried"));
        assert_eq!(choice.accelerator, Accelerator::Tcg);
        assert!(choice.why.unwrap().contains("another kind of processor"));
    }

    #[test]
    fn a_device_that_is_not_there_is_not_tried() {
        let folder = tempfile::tempdir().unwrap();
        assert!(may_open(&folder.path().join("kvm")).unwrap_err().contains("there is no"));
        assert!(may_open(folder.path()).unwrap_err().contains("cannot be opened"));
        assert_eq!(may_open(Path::new("/dev/null")), Ok(()));
    }
}
