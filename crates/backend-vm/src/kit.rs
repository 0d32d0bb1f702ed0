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
    #[error(
        "{program} is not on the PATH: install QEMU (Debian, Ubuntu: apt-get install --no-install-recommends {package})",
        program = .0.qemu(),
        package = .0.package()
    )]
    Qemu(Architecture),
    #[error("there is no {what} for virtual machines at {path}: `cofferdam vm setup{flag}` puts it there", path = path.display())]
    Missing { what: &'static str, path: PathBuf, flag: String },
}

impl Kit {
    /// Looks for QEMU on a search path; the kernel and the initramfs are where they are said to be. All paths become real ones.
    ///
    /// # Errors
    /// What is missing.
    pub fn find(
        architecture: Architecture,
        search_path: &std::ffi::OsStr,
        kernel: &Path,
        initrd: &Path,
    ) -> Result<Kit, KitError> {
        let name = architecture.qemu();
        let mut found = std::env::split_paths(search_path).map(|directory| directory.join(name));
        let qemu = found.find(|path| path.is_absolute() && path.is_file()).ok_or(KitError::Qemu(architecture))?;
        let real = |what, path: &Path| {
            let flag = match Architecture::of_this_host() == Some(architecture) {
                true => String::new(),
                false => format!(" --arch {}", architecture.word()),
            };
            fs::canonicalize(path).map_err(|_| KitError::Missing { what, path: path.to_owned(), flag })
        };
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
        for (architecture, package) in
            [(Architecture::X86_64, "qemu-system-x86)"), (Architecture::Aarch64, "qemu-system-arm)")]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let find = || Kit::find(architecture, folder.path().as_os_str(), &path("kernel"), &path("initrd"));
            assert!(find().unwrap_err().to_string().ends_with(package));
            fs::write(path(architecture.qemu()), "").unwrap();
            let other = format!(" --arch {}`", architecture.word());
            let is_other = Architecture::of_this_host() != Some(architecture);
            let said = find().unwrap_err().to_string();
            assert!(said.contains("vm setup") && said.contains(&other) == is_other, "{said}");
            fs::write(path("kernel"), "").unwrap();
            assert!(find().unwrap_err().to_string().contains("no initramfs"));
            fs::write(path("initrd"), "").unwrap();
            assert_eq!(find().unwrap().kernel, path("kernel").canonicalize().unwrap());
        }
    }
}
