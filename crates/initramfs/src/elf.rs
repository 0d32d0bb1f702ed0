//! What can be seen of an executable without running it: for which processor it is, and whether it needs nothing else.

/// The kind of processor of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    pub const ALL: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];

    /// As the kernel calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        }
    }

    /// As Debian calls it.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Architecture::X86_64 => "amd64",
            Architecture::Aarch64 => "arm64",
        }
    }

    /// `e_machine` of elf(5).
    fn machine(self) -> [u8; 2] {
        match self {
            Architecture::X86_64 => [62, 0],
            Architecture::Aarch64 => [183, 0],
        }
    }
}

/// Why a file cannot be executed in an initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExecutableError {
    #[error("it is no executable of 64 bits")]
    NoExecutable,
    #[error("it is not for {}", .wanted.word())]
    OtherArchitecture { wanted: Architecture },
    #[error("it is not linked statically, and there are no libraries in an initramfs")]
    NeedsLibraries,
}

/// Looks at the headers of an executable.
///
/// # Errors
/// Why it could not be executed.
pub fn check_executable(file: &[u8], wanted: Architecture) -> Result<(), ExecutableError> {
    const PROGRAM_HEADER: usize = 56;
    /// `PT_INTERP`: the program that loads libraries.
    const INTERPRETER: &[u8] = &[3, 0, 0, 0];
    let elf = file.strip_prefix(b"\x7fELF\x02\x01").ok_or(ExecutableError::NoExecutable)?;
    if elf.get(12..14) != Some(&wanted.machine()) {
        return Err(ExecutableError::OtherArchitecture { wanted });
    }
    let number = |at: usize, bytes: usize| {
        let field = file.get(at..at.checked_add(bytes)?)?;
        usize::try_from(field.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))).ok()
    };
    let (table, count) = number(0x20, 8).zip(number(0x38, 2)).ok_or(ExecutableError::NoExecutable)?;
    let header = |index: usize| {
        let start = table.checked_add(index.checked_mul(PROGRAM_HEADER)?)?;
        file.get(start..start.checked_add(4)?)
    };
    match (0..count).any(|index| header(index) == Some(INTERPRETER)) {
        true => Err(ExecutableError::NeedsLibraries),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The headers of an executable whose only segment is of this type.
    fn executable(machine: u8, segment: u8) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64 + 56, 0);
        file[0x12] = machine;
        file[0x20] = 64;
        file[0x38] = 1;
        file[64] = segment;
        file
    }

    #[test]
    fn tells_whose_an_executable_is_and_what_it_needs() {
        let check = |file: &[u8]| check_executable(file, Architecture::Aarch64);
        assert_eq!(check(&executable(183, 1)), Ok(()));
        assert_eq!(check(&executable(183, 3)), Err(ExecutableError::NeedsLibraries));
        assert_eq!(
            check(&executable(62, 1)),
            Err(ExecutableError::OtherArchitecture { wanted: Architecture::Aarch64 })
        );
        assert_eq!(check(b"#!/bin/sh"), Err(ExecutableError::NoExecutable));
        assert_eq!(check_executable(&executable(62, 1), Architecture::X86_64), Ok(()));
    }

    proptest! {
        #[test]
        fn any_file_gets_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut file = executable(62, 1);
            for (place, byte) in file.iter_mut().skip(20).zip(&bytes) {
                *place = *byte;
            }
            let _ = check_executable(&file, Architecture::X86_64);
            let _ = check_executable(&bytes, Architecture::X86_64);
        }
    }
}
