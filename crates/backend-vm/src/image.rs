//! What the first bytes of an image of a disk tell. Pure.
//!
//! Two kinds are taken: qcow2, which says so, and raw with a file system of the kind that the guest mounts, or with partitions.
//! A qcow2 that needs another file is refused: whoever made the image would choose which.
//!
//! Read first: "The QCOW2 image format" in QEMU's `docs/interop/qcow2.txt`; offsets below are from there.

use crate::arguments::ImageFormat;

/// How many bytes have to be looked at.
pub(crate) const HEAD: usize = 2048;

const QCOW2: &[u8] = b"QFI\xfb";

/// Bits of `incompatible_features` that concern the image alone: dirty, corrupt, compression, extended entries. Bit 2 is not
/// among them: data is in another file.
const HARMLESS: u64 = 0b1_1011;

/// Where an ext4 file system has its magic number: at 56 of the superblock, which is at 1024.
const EXT4: (usize, &[u8]) = (1024 + 56, &[0x53, 0xef]);

/// Where a disk with partitions of either kind has its.
const PARTITIONS: (usize, &[u8]) = (510, &[0x55, 0xaa]);

/// Why an image is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("it is neither a qcow2 image nor a raw one with ext4 or partitions")]
    Unknown,
    #[error("the qcow2 image ends in its header")]
    Short,
    #[error("it is a qcow2 image of version {0}, and 2 and 3 are known")]
    Version(u32),
    #[error(
        "it is a qcow2 image on top of another file, which a guest is not given; `qemu-img convert -O qcow2 FROM TO` makes one that is whole"
    )]
    Backing,
    #[error("it is a qcow2 image whose data is in another file, which a guest is not given")]
    DataFile,
    #[error("it is an encrypted qcow2 image")]
    Encrypted,
    #[error("it is a qcow2 image with features that are not known (incompatible features {0:#x})")]
    Features(u64),
}

impl ImageFormat {
    /// That of an image that begins so.
    ///
    /// # Errors
    /// Why it is not taken.
    pub(crate) fn parse(head: &[u8]) -> Result<ImageFormat, ImageError> {
        if head.starts_with(QCOW2) {
            return check_qcow2(head).map(|()| ImageFormat::Qcow2);
        }
        let has = |(at, magic): (usize, &[u8])| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
        if has(EXT4) || has(PARTITIONS) { Ok(ImageFormat::Raw) } else { Err(ImageError::Unknown) }
    }
}

fn check_qcow2(head: &[u8]) -> Result<(), ImageError> {
    let version = u32::from_be_bytes(field(head, 4)?);
    if !matches!(version, 2 | 3) {
        return Err(ImageError::Version(version));
    }
    if u64::from_be_bytes(field(head, 8)?) != 0 || u32::from_be_bytes(field(head, 16)?) != 0 {
        return Err(ImageError::Backing);
    }
    if u32::from_be_bytes(field(head, 32)?) != 0 {
        return Err(ImageError::Encrypted);
    }
    // Version 2 ends before the features.
    let features = if version == 2 { 0 } else { u64::from_be_bytes(field(head, 72)?) };
    if features & 0b100 != 0 {
        return Err(ImageError::DataFile);
    }
    if features & !HARMLESS != 0 { Err(ImageError::Features(features)) } else { Ok(()) }
}

fn field<const N: usize>(head: &[u8], at: usize) -> Result<[u8; N], ImageError> {
    let bytes = head.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().ok_or(ImageError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, bytes) in changes {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn qcow2(changes: &[(usize, &[u8])]) -> Vec<u8> {
        with(&[&[(0, QCOW2), (4, &[0, 0, 0, 3][..])], changes].concat())
    }

    #[test]
    fn takes_ext4_partitions_and_qcow2() {
        assert_eq!(ImageFormat::parse(&with(&[EXT4])), Ok(ImageFormat::Raw));
        assert_eq!(ImageFormat::parse(&with(&[PARTITIONS])), Ok(ImageFormat::Raw));
        assert_eq!(ImageFormat::parse(&qcow2(&[])), Ok(ImageFormat::Qcow2));
        // Dirty, and compressed: the image's own affair.
        assert_eq!(ImageFormat::parse(&qcow2(&[(79, &[0b1001])])), Ok(ImageFormat::Qcow2));
        // What version 3 has there is no feature in version 2.
        assert_eq!(ImageFormat::parse(&qcow2(&[(7, &[2]), (79, &[0b100])])), Ok(ImageFormat::Qcow2));
    }

    #[test]
    fn a_qcow2_that_needs_another_file_is_refused() {
        assert_eq!(ImageFormat::parse(&qcow2(&[(15, &[1])])), Err(ImageError::Backing));
        assert_eq!(ImageFormat::parse(&qcow2(&[(19, &[1])])), Err(ImageError::Backing));
        assert_eq!(ImageFormat::parse(&qcow2(&[(79, &[0b100])])), Err(ImageError::DataFile));
        assert_eq!(ImageFormat::parse(&qcow2(&[(35, &[1])])), Err(ImageError::Encrypted));
        assert_eq!(ImageFormat::parse(&qcow2(&[(79, &[0b10_0000])])), Err(ImageError::Features(0b10_0000)));
        assert_eq!(ImageFormat::parse(&qcow2(&[(7, &[4])])), Err(ImageError::Version(4)));
        // An ext4 magic where a qcow2 image has something else does not make it raw.
        assert_eq!(ImageFormat::parse(&qcow2(&[EXT4, (15, &[1])])), Err(ImageError::Backing));
    }

    #[test]
    fn whatever_else_it_is_is_not_taken_and_no_length_is_too_short() {
        assert_eq!(ImageFormat::parse(&with(&[])), Err(ImageError::Unknown));
        assert_eq!(ImageFormat::parse(&with(&[(0, b"hsqs")])), Err(ImageError::Unknown));
        let whole = qcow2(&[]);
        for length in 0..80 {
            let error = if length < QCOW2.len() { ImageError::Unknown } else { ImageError::Short };
            assert_eq!(ImageFormat::parse(&whole[..length]), Err(error), "{length}");
        }
    }
}
