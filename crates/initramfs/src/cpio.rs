//! Archives in the format that the kernel unpacks: "newc" of cpio(5).
//!
//! An entry is a header of fourteen numbers in hexadecimal, the name with a NUL, and the content; name and content are padded to
//! multiples of four bytes. Everything belongs to root and has no time, so that the same input gives the same bytes.

const MAGIC: &str = "070701";
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;
const TYPE_CHARACTER: u32 = 0o020_000;
/// The kernel refuses longer names (`PATH_MAX` in init/initramfs.c), and cuts off what is no path.
const MAX_NAME: usize = 4095;
const TRAILER: &str = "TRAILER!!!";

/// Why something cannot be in an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    #[error("{name:?} cannot be a name in an archive: it is empty, absolute, too long, or has a NUL")]
    Name { name: String },
    #[error("{name} is {length} bytes long, and 4 GiB are the most in an archive")]
    Size { name: String, length: usize },
}

/// An archive that is being made.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    #[must_use]
    pub fn new() -> Archive {
        Archive::default()
    }

    /// # Errors
    /// A name that cannot be one.
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<(), ArchiveError> {
        self.entry(name, TYPE_DIRECTORY | permissions, (0, 0), &[])
    }

    /// # Errors
    /// A name that cannot be one; a file of 4 GiB or more.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> Result<(), ArchiveError> {
        self.entry(name, TYPE_FILE | permissions, (0, 0), content)
    }

    /// # Errors
    /// A name that cannot be one.
    pub fn link(&mut self, name: &str, target: &str) -> Result<(), ArchiveError> {
        self.entry(name, TYPE_LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device.
    ///
    /// # Errors
    /// A name that cannot be one.
    pub fn device(&mut self, name: &str, permissions: u32, number: (u32, u32)) -> Result<(), ArchiveError> {
        self.entry(name, TYPE_CHARACTER | permissions, number, &[])
    }

    /// The archive, with the entry that ends it.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.emit(TRAILER, 0, (0, 0), &[], 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<(), ArchiveError> {
        if name.is_empty() || name.len() > MAX_NAME || name.starts_with('/') || name.contains('\0') || name == TRAILER {
            return Err(ArchiveError::Name { name: name.to_owned() });
        }
        let size = |_| ArchiveError::Size { name: name.to_owned(), length: content.len() };
        let length = u32::try_from(content.len()).map_err(size)?;
        self.emit(name, mode, device, content, length);
        Ok(())
    }

    fn emit(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8], length: u32) {
        // Entries of one number are links to one file; each has a number of its own.
        self.entries = self.entries.saturating_add(1);
        let links = if mode & TYPE_DIRECTORY == TYPE_DIRECTORY { 2 } else { 1 };
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let (major, minor) = device;
        let fields = [self.entries, mode, 0, 0, links, 0, length, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Names, modes and contents, by a reader that knows the format from its description alone.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let whole = bytes.len();
        loop {
            assert_eq!((whole - bytes.len()) % 4, 0);
            let (header, rest) = bytes.split_at(110);
            assert_eq!(&header[..6], b"070701");
            let field = |at: usize| {
                u32::from_str_radix(std::str::from_utf8(&header[6 + 8 * at..14 + 8 * at]).unwrap(), 16).unwrap()
            };
            let (mode, length, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(rest[..name_size - 1].to_vec()).unwrap();
            assert_eq!(rest[name_size - 1], 0);
            let start = (110 + name_size).next_multiple_of(4);
            let content = bytes[start..start + length].to_vec();
            bytes = &bytes[(start + length).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn an_archive_has_what_was_put_in() {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755).unwrap();
        archive.device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, b"#!/bin/sh").unwrap();
        archive.link("bin/sh", "busybox").unwrap();
        let expected = [
            ("dev", 0o040_755, &b""[..]),
            ("dev/console", 0o020_600, b""),
            ("init", 0o100_755, b"#!/bin/sh"),
            ("bin/sh", 0o120_777, b"busybox"),
        ];
        let expected = expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec()));
        assert_eq!(read(&archive.finish()), expected);
    }

    #[test]
    fn refuses_what_is_no_name() {
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["", "/init", "a\0b", TRAILER, &long] {
            assert!(Archive::new().file(name, 0o644, b"").is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_archive_of_a_boot_has_the_token_for_root_alone() {
        let entries = read(&crate::boot_archive(b"secret"));
        assert_eq!(entries.last(), Some(&("cofferdam/token".to_owned(), 0o100_400, b"secret".to_vec())));
    }

    proptest! {
        #[test]
        fn any_files_survive(files in prop::collection::vec(("[a-zä]{1,9}", prop::collection::vec(any::<u8>(), 0..50)), 0..9)) {
            let mut archive = Archive::new();
            for (name, content) in &files {
                archive.file(name, 0o644, content).unwrap();
            }
            let read: Vec<_> = read(&archive.finish()).into_iter().map(|(name, _, content)| (name, content)).collect();
            prop_assert_eq!(read, files);
        }
    }
}
