//! What of the host a virtual machine is made from.

use std::fs;
use std::path::{Path, PathBuf};

use crate::arguments::Architecture;

/// QEMU, a kernel, and what the kernel starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kit {
    pub architecture: Architecture,
    pub qemu: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    #[error("there are no virtual machines for processors of type {0} here")]
    Architecture(&'static str),
    #[error(
        "{0} is not on the PATH: install QEMU (Debian, Ubuntu: apt-get install --no-install-recommends qemu-system-x86, or \
         qemu-system-arm on ARM)"
    )]
    Qemu(&'static str),
    #[error("there is no {what} for virtual machines at {path}: `cofferdam vm setup` puts it there", path = path.display())]
    Missing { what: &'static str, path: PathBuf },
}

impl Kit {
    /// Looks for QEMU on a search path; the kernel and the initramfs are where they are said to be. All paths become real ones.
    ///
    /// # Errors
    /// What is missing.
    pub fn find(search_path: &std::ffi::OsStr, kernel: &Path, initrd: &Path) -> Result<Kit, KitError> {
        let architecture = Architecture::of_this_host().ok_or(KitError::Architecture(std::env::consts::ARCH))?;
        let name = architecture.qemu();
        let mut found = std::env::split_paths(search_path).map(|directory| directory.join(name));
        let qemu = found.find(|path| path.is_absolute() && path.is_file()).ok_or(KitError::Qemu(name))?;
        let real =
            |what, path: &Path| fs::canonicalize(path).map_err(|_| KitError::Missing { what, path: path.to_owned() });
        Ok(Kit {
            architecture,
            qemu: real("QEMU", &qemu)?,
            kernel: real("kernel", kernel)?,
            initrd: real("initramfs", initrd)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_missing_and_where_it_comes_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let find = || Kit::find(folder.path().as_os_str(), &path("kernel"), &path("initrd"));
        assert!(find().unwrap_err().to_string().contains("apt-get install"));
        fs::write(path(Architecture::of_this_host().unwrap().qemu()), "").unwrap();
        assert!(find().unwrap_err().to_string().contains("vm setup"));
        fs::write(path("kernel"), "").unwrap();
        assert!(find().unwrap_err().to_string().contains("no initramfs"));
        fs::write(path("initrd"), "").unwrap();
        assert_eq!(find().unwrap().kernel, path("kernel").canonicalize().unwrap());
    }
}
