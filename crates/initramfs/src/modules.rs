//! Which of a kernel's modules a machine needs, and in which order they are loaded.
//!
//! A module says itself what it stands on, in its ELF section `.modinfo`: texts `NAME=VALUE` with a NUL behind each. A folder
//! out of a package has no list of dependencies (the distribution makes that on the machine), so the modules are asked.
//!
//! What a module stands on it names by the file; what it wants may be any module's other name (`alias`) as well. ext4 wants
//! `crypto-crc32c`, which is the name of each module that computes that sum, and asks the kernel for one when it mounts. The kernel
//! would start modprobe(8), which is not there, so all of that name are loaded before, as modprobe does.

use std::collections::{BTreeMap, BTreeSet};

/// The most modules that may stand on each other in a row; real ones are seven deep.
const DEEPEST: usize = 32;

/// What a module says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleInfo {
    /// Modules that have to be there before it.
    pub depends: Vec<String>,
    /// Modules that it is of little use without (`softdep`), by their names or by other names of theirs.
    pub wants: Vec<String>,
    /// Its other names (`alias`), without those that stand for devices.
    pub aliases: Vec<String>,
}

/// Why a module cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    #[error("{module} is no ELF file of 64 bits with a section .modinfo")]
    NoModule { module: String },
    #[error("{module} needs {needed}, which is not there")]
    Missing { module: String, needed: String },
    #[error("{module} stands on a row of more than {DEEPEST} modules")]
    TooDeep { module: String },
}

/// Modules that are loaded together, when they are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The channel to the host, at once.
    Boot,
    Net,
    Disk,
    Overlay,
    Plan9,
    Virtiofs,
    Cifs,
    /// What programs may use: a source of randomness, sockets to the host.
    Rest,
}

impl Group {
    pub const ALL: [Group; 8] =
        [Group::Boot, Group::Net, Group::Disk, Group::Overlay, Group::Plan9, Group::Virtiofs, Group::Cifs, Group::Rest];

    /// As the list of modules has it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Group::Boot => "boot",
            Group::Net => "net",
            Group::Disk => "disk",
            Group::Overlay => "overlay",
            Group::Plan9 => "9p",
            Group::Virtiofs => "virtiofs",
            Group::Cifs => "cifs",
            Group::Rest => "rest",
        }
    }

    /// The modules by name. What a kernel has built in, or has not, is left out.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Group::Boot => &["virtio_pci", "virtio_mmio", "virtio_console"],
            // `af_packet` is what ping and dhcp clients of busybox ask for.
            Group::Net => &["virtio_net", "af_packet", "ipv6"],
            Group::Disk => &["virtio_blk", "ext4"],
            Group::Overlay => &["overlay"],
            Group::Plan9 => &["9pnet_virtio", "9p"],
            Group::Virtiofs => &["virtiofs"],
            // The kernel would ask for its ciphers by name when a share is mounted, from a program that is not there.
            Group::Cifs => &[
                "md4",
                "md5",
                "hmac",
                "cmac",
                "ecb",
                "ctr",
                "gcm",
                "ccm",
                "aes_generic",
                "aesni_intel",
                "sha256_generic",
                "sha512_generic",
                "nls_utf8",
                "cifs",
            ],
            Group::Rest => &["virtio_rng", "vmw_vsock_virtio_transport"],
        }
    }
}

/// The modules of a kernel.
#[derive(Debug, Clone, Default)]
pub struct Modules(BTreeMap<String, ModuleInfo>);

impl ModuleInfo {
    /// Reads what the file of a module says.
    ///
    /// # Errors
    /// [`ModuleError::NoModule`].
    pub fn parse(module: &str, file: &[u8]) -> Result<ModuleInfo, ModuleError> {
        let text = section(file, b".modinfo").ok_or_else(|| ModuleError::NoModule { module: module.to_owned() })?;
        let mut info = ModuleInfo::default();
        for entry in text.split(|byte| *byte == 0) {
            let Ok(entry) = std::str::from_utf8(entry) else { continue };
            if let Some(names) = entry.strip_prefix("depends=") {
                info.depends.extend(names.split(',').filter(|name| !name.is_empty()).map(canonical));
            } else if let Some(wanted) = entry.strip_prefix("softdep=pre: ") {
                let before = wanted.split(" post:").next().unwrap_or_default();
                info.wants.extend(before.split_whitespace().map(canonical));
            } else if let Some(alias) = entry.strip_prefix("alias=").filter(|alias| !alias.contains([':', '*'])) {
                info.aliases.push(canonical(alias));
            }
        }
        Ok(info)
    }

    /// Whether one of these is another name of the module.
    #[must_use]
    pub fn answers_to(&self, names: &BTreeSet<String>) -> bool {
        self.aliases.iter().any(|alias| names.contains(alias))
    }
}

/// The name of a module: the kernel takes `-` and `_` for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

impl Modules {
    /// Which names could be needed at all, of all there are: so that not every file has to be read. Ask until nothing is new.
    #[must_use]
    pub fn unknown(&self, groups: &[Group]) -> BTreeSet<String> {
        let named = groups.iter().flat_map(|group| group.modules()).map(|name| (*name).to_owned());
        let said = self.0.values().flat_map(|info| info.depends.iter().chain(&info.wants)).cloned();
        named.chain(said).filter(|name| !self.0.contains_key(name)).collect()
    }

    /// What modules want and none is: another name of modules that are to be looked for, if it is not `built_in`.
    #[must_use]
    pub fn wanted(&self, built_in: &BTreeSet<String>) -> BTreeSet<String> {
        let names = self.0.values().flat_map(|info| &info.wants);
        names.filter(|name| !self.0.contains_key(*name) && !built_in.contains(*name)).cloned().collect()
    }

    /// A module is there, under the name of its file without the ending.
    pub fn insert(&mut self, file_stem: &str, info: ModuleInfo) {
        self.0.insert(canonical(file_stem), info);
    }

    /// The modules of the groups in the order of loading, each once in every group that needs it, since no group but that of the
    /// start is loaded for certain before another.
    ///
    /// # Errors
    /// A module that stands on one that is neither there nor among those `built_in`.
    pub fn load_order(
        &self,
        groups: &[Group],
        built_in: &BTreeSet<String>,
    ) -> Result<Vec<(Group, String)>, ModuleError> {
        let mut order = Vec::new();
        let mut at_start = BTreeSet::new();
        for group in groups {
            let mut done = at_start.clone();
            for name in group.modules().iter().filter(|name| self.0.contains_key(**name)) {
                self.add(name, *group, built_in, &mut done, &mut order, 0)?;
            }
            if *group == Group::Boot {
                at_start = done;
            }
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        group: Group,
        built_in: &BTreeSet<String>,
        done: &mut BTreeSet<String>,
        order: &mut Vec<(Group, String)>,
        depth: usize,
    ) -> Result<(), ModuleError> {
        let Some(info) = self.0.get(name).filter(|_| !done.contains(name)) else { return Ok(()) };
        if depth > DEEPEST {
            return Err(ModuleError::TooDeep { module: name.to_owned() });
        }
        let missing = info.depends.iter().find(|needed| !self.0.contains_key(*needed) && !built_in.contains(*needed));
        if let Some(needed) = missing {
            return Err(ModuleError::Missing { module: name.to_owned(), needed: needed.clone() });
        }
        for needed in info.wants.iter().flat_map(|name| self.called(name)).chain(&info.depends) {
            self.add(needed, group, built_in, done, order, depth + 1)?;
        }
        if done.insert(name.to_owned()) {
            order.push((group, name.to_owned()));
        }
        Ok(())
    }

    /// The module of this name, or those that it is another name of.
    fn called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a String> {
        let is_one = self.0.contains_key(name);
        let is_called = move |(own, info): &(&String, &ModuleInfo)| match is_one {
            true => *own == name,
            false => info.aliases.iter().any(|alias| alias == name),
        };
        self.0.iter().filter(is_called).map(|(own, _)| own)
    }
}

/// The name of a module whose file has this name, whatever packs it.
impl Modules {
    /// `virtio_pci` of `virtio-pci.ko.xz`; `None` for what is no module.
    #[must_use]
    pub fn name_of(file_name: &str) -> Option<String> {
        let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|ending| file_name.strip_suffix(ending))?;
        Some(canonical(stem))
    }
}

/// A section of an ELF file of 64 bits, little endian (elf(5)).
fn section<'a>(file: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    const SECTION_HEADER: usize = 64;
    let number = |at: usize, bytes: usize| {
        let field = file.get(at..at.checked_add(bytes)?)?;
        let value = field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    // Class 2 is 64 bits, data 1 is little endian.
    file.strip_prefix(b"\x7fELF\x02\x01")?;
    let (table, count, names) = (number(0x28, 8)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(SECTION_HEADER)?);
    let content = |header: usize| {
        let (start, length) = (number(header.checked_add(0x18)?, 8)?, number(header.checked_add(0x20)?, 8)?);
        file.get(start..start.checked_add(length)?)
    };
    let names = content(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = names.get(number(header, 4)?..)?.split(|byte| *byte == 0).next()?;
        (name == wanted).then(|| content(header))?
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file of the section that names sections and of `.modinfo`.
    fn module(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        let names_at = file.len();
        file.extend_from_slice(names);
        let info_at = file.len();
        file.extend_from_slice(modinfo);
        let table = file.len();
        file[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        file[0x3e..0x40].copy_from_slice(&1u16.to_le_bytes());
        for (name, start, length) in [(0, 0, 0), (1, names_at, names.len()), (11, info_at, modinfo.len())] {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&(name as u32).to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(start as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            file.extend(header);
        }
        file
    }

    fn kernel(modules: &[(&str, &[&str], &[&str])]) -> Modules {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut all = Modules::default();
        for (name, depends, wants) in modules {
            all.insert(name, ModuleInfo { depends: own(depends), wants: own(wants), aliases: Vec::new() });
        }
        all
    }

    fn words(order: &[(Group, String)]) -> Vec<String> {
        order.iter().map(|(group, name)| format!("{} {name}", group.word())).collect()
    }

    #[test]
    fn a_module_says_what_it_stands_on() {
        let file = module(b"license=GPL\0depends=virtio-ring,virtio\0softdep=pre: crc32c nls post: other\0name=x\0");
        let info = ModuleInfo::parse("x", &file).unwrap();
        assert_eq!(
            (info.depends, info.wants),
            (vec!["virtio_ring".to_owned(), "virtio".to_owned()], vec!["crc32c".to_owned(), "nls".to_owned()])
        );
    }

    #[test]
    fn a_module_says_how_else_it_is_called() {
        let file = module(b"alias=crypto-crc32c\0alias=pci:v00001AF4d*\0alias=fs-ext4\0alias=cpu:type:x86,ven*\0");
        assert_eq!(ModuleInfo::parse("x", &file).unwrap().aliases, ["crypto_crc32c", "fs_ext4"]);
    }

    #[test]
    fn all_modules_that_are_called_what_one_wants_come_before_it() {
        let mut kernel =
            kernel(&[("ext4", &["jbd2"], &["crypto_crc32c", "crypto_built_in"]), ("jbd2", &[], &["crypto_crc32c"])]);
        let built_in = BTreeSet::from(["crypto_built_in".to_owned()]);
        let wanted = kernel.wanted(&built_in);
        assert_eq!(wanted, BTreeSet::from(["crypto_crc32c".to_owned()]));
        // As the usual kernel of Debian 12 has them.
        for (name, modinfo) in [
            ("crc32c-intel", &b"alias=crypto-crc32c-intel\0alias=crypto-crc32c\0depends=cryptd\0"[..]),
            ("crc32c_generic", b"alias=crypto-crc32c\0alias=crc32c\0depends=\0"),
            ("crc32_generic", b"alias=crypto-crc32\0depends=\0"),
        ] {
            let info = ModuleInfo::parse(name, &module(modinfo)).unwrap();
            assert_eq!(info.answers_to(&wanted), name != "crc32_generic");
            kernel.insert(name, info);
        }
        assert!(kernel.unknown(&[Group::Disk]).contains("cryptd"));
        kernel.insert("cryptd", ModuleInfo::default());
        let order = kernel.load_order(&[Group::Disk], &built_in).unwrap();
        let expected = ["disk crc32c_generic", "disk cryptd", "disk crc32c_intel", "disk jbd2", "disk ext4"];
        assert_eq!(words(&order), expected);
    }

    #[test]
    fn what_a_module_stands_on_comes_first_and_once() {
        let kernel = kernel(&[
            ("virtio_net", &["net_failover", "virtio"], &[]),
            ("net_failover", &["failover"], &[]),
            ("failover", &[], &[]),
            ("virtio-pci", &["virtio"], &[]),
            ("virtio", &[], &[]),
        ]);
        let order = kernel.load_order(&[Group::Boot, Group::Net], &BTreeSet::new()).unwrap();
        assert_eq!(
            words(&order),
            ["boot virtio", "boot virtio_pci", "net failover", "net net_failover", "net virtio_net"]
        );
    }

    #[test]
    fn what_two_groups_stand_on_is_in_both() {
        let kernel = kernel(&[
            ("virtio_pci", &["virtio"], &[]),
            ("virtio", &[], &[]),
            ("9p", &["fscache", "virtio"], &[]),
            ("cifs", &["fscache"], &[]),
            ("fscache", &[], &[]),
        ]);
        let order = kernel.load_order(&[Group::Boot, Group::Plan9, Group::Cifs], &BTreeSet::new()).unwrap();
        let expected = ["boot virtio", "boot virtio_pci", "9p fscache", "9p 9p", "cifs fscache", "cifs cifs"];
        assert_eq!(words(&order), expected);
    }

    #[test]
    fn what_is_built_in_need_not_be_there_and_what_is_nowhere_is_named() {
        let kernel = kernel(&[("virtio_pci", &["virtio"], &["gone"])]);
        let built_in = BTreeSet::from(["virtio".to_owned()]);
        assert_eq!(words(&kernel.load_order(&[Group::Boot], &built_in).unwrap()), ["boot virtio_pci"]);
        let error = kernel.load_order(&[Group::Boot], &BTreeSet::new()).unwrap_err();
        assert_eq!(error.to_string(), "virtio_pci needs virtio, which is not there");
    }

    #[test]
    fn modules_that_want_each_other_have_an_end() {
        let kernel = kernel(&[("virtio_pci", &["virtio"], &[]), ("virtio", &["virtio_pci"], &[])]);
        assert!(matches!(kernel.load_order(&[Group::Boot], &BTreeSet::new()), Err(ModuleError::TooDeep { .. })));
    }

    #[test]
    fn names_come_from_files_packed_or_not() {
        for file in ["virtio-pci.ko", "virtio_pci.ko.xz", "virtio_pci.ko.zst"] {
            assert_eq!(Modules::name_of(file).as_deref(), Some("virtio_pci"));
        }
        assert_eq!(Modules::name_of("modules.order"), None);
    }

    proptest! {
        #[test]
        fn any_file_gets_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
            let _ = ModuleInfo::parse("x", &bytes);
            let mut file = module(b"depends=a\0");
            for (place, byte) in file.iter_mut().skip(at.index(260)).zip(&bytes) {
                *place = *byte;
            }
            let _ = ModuleInfo::parse("x", &file);
        }
    }
}
