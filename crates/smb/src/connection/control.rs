//! IOCTL: what is left of the protocol, and symbolic links.

use std::os::fd::AsFd;

use super::{Ask, Chain, Connection, Failure, info};
use crate::share::{Facts, Kind, read_link};
use crate::status::Status;
use crate::wire::bytes::{Put, Reader, len16, len32, part, text, utf16};
use crate::wire::header::HEADER;
use crate::wire::request::Ioctl;

const VALIDATE_NEGOTIATE: u32 = 0x0014_0204;
const DFS_REFERRALS: u32 = 0x0006_0194;
const DFS_REFERRALS_EX: u32 = 0x0006_01b0;
const SET_REPARSE_POINT: u32 = 0x0009_00a4;
const GET_REPARSE_POINT: u32 = 0x0009_00a8;

const RELATIVE: u32 = 1;

/// Longest target of a symbolic link (`PATH_MAX`).
const LONGEST_TARGET: usize = 4095;

impl Connection<'_> {
    pub(super) fn ioctl(
        &mut self,
        ioctl: &Ioctl<'_>,
        ask: &Ask<'_>,
        chain: &Chain,
        out: &mut Vec<u8>,
    ) -> Result<Status, Failure> {
        if !ioctl.is_fsctl {
            return Err(Status::NOT_SUPPORTED.into());
        }
        let output = match ioctl.code {
            VALIDATE_NEGOTIATE => self.validate_negotiate(ioctl)?,
            // There is no distributed file system here.
            DFS_REFERRALS | DFS_REFERRALS_EX => return Err(Status::FS_DRIVER_REQUIRED.into()),
            GET_REPARSE_POINT => {
                let id = self.file_of(ioctl.file, ask, chain)?;
                let open = self.open_mut(id)?;
                open.share.check()?;
                if open.facts.kind != Kind::Symlink {
                    return Err(Status::NOT_A_REPARSE_POINT.into());
                }
                symlink_reparse_data(&read_link(open.file.as_fd())?)
            }
            SET_REPARSE_POINT => {
                let id = self.file_of(ioctl.file, ask, chain)?;
                self.become_symlink(id, ioctl.input)?;
                Vec::new()
            }
            // Linux copies through itself where the server does not.
            _ => return Err(Status::NOT_SUPPORTED.into()),
        };
        if len32(output.len()) > ioctl.max_output {
            return Err(Status::BUFFER_TOO_SMALL.into());
        }
        const HEAD: usize = 48;
        out.u16(49);
        out.u16(0);
        out.u32(ioctl.code);
        out.u64(ioctl.file.0);
        out.u64(ioctl.file.0);
        out.u32(len32(HEADER + HEAD));
        out.u32(0);
        out.u32(len32(HEADER + HEAD));
        out.u32(len32(output.len()));
        out.u64(0);
        out.put(&output);
        Ok(Status::SUCCESS)
    }

    /// Makes a symbolic link of an empty file or directory that was made for that.
    fn become_symlink(&mut self, id: u64, data: &[u8]) -> Result<(), Failure> {
        let open = self.open_mut(id)?;
        open.share.check()?;
        let writable = open.share.writable()?;
        let target = symlink_target(data)?;
        let facts = Facts::of(open.file.as_fd())?;
        // What holds something, or has another name, was not made for this.
        let is_blank = match facts.kind {
            Kind::File => facts.size == 0 && facts.links == 1,
            Kind::Directory => true,
            Kind::Symlink | Kind::Special => false,
        };
        if !is_blank || !open.is_new {
            return Err(Status::ACCESS_DENIED.into());
        }
        open.file = writable.replace_by_link(&open.path, &facts, &target)?;
        open.facts = Facts::of(open.file.as_fd())?;
        (open.can.read, open.can.write) = (false, false);
        Ok(())
    }
}

/// A symbolic link as data of a reparse point, MS-FSCC 2.1.2.4. The target stands there as it is on the host.
pub(super) fn symlink_reparse_data(target: &str) -> Vec<u8> {
    let is_absolute = target.starts_with('/');
    let name = utf16(target);
    let mut data = Vec::new();
    data.u32(info::SYMLINK_TAG);
    data.u16(len16(12 + 2 * name.len()));
    data.u16(0);
    // The name to follow, and the name to show.
    data.u16(0);
    data.u16(len16(name.len()));
    data.u16(len16(name.len()));
    data.u16(len16(name.len()));
    data.u32(if is_absolute { 0 } else { RELATIVE });
    data.put(&name);
    data.put(&name);
    data
}

fn symlink_target(data: &[u8]) -> Result<String, Status> {
    let mut fields = Reader::new(data);
    let bad = Status::IO_REPARSE_DATA_INVALID;
    let tag = fields.u32().ok_or(bad)?;
    if tag != info::SYMLINK_TAG {
        // FIFOs, sockets and devices.
        return Err(Status::NOT_SUPPORTED);
    }
    let _lengths = fields.u32().ok_or(bad)?;
    let (at, len, _print) = (fields.u16().ok_or(bad)?, fields.u16().ok_or(bad)?, fields.u32().ok_or(bad)?);
    let _flags = fields.u32().ok_or(bad)?;
    let target = text(part(fields.rest(), at, len).ok_or(bad)?).ok_or(bad)?;
    // Clients of Windows' kind write separators their way.
    let target = target.replace('\\', "/");
    let fits = !target.is_empty() && target.len() <= LONGEST_TARGET && !target.contains('\0');
    if fits { Ok(target) } else { Err(bad) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_target_comes_back_as_it_was() {
        for target in ["a", "../b/ü", "/usr/bin/env"] {
            assert_eq!(symlink_target(&symlink_reparse_data(target)).as_deref(), Ok(target));
        }
        assert!(symlink_target(&symlink_reparse_data("")).is_err());
        assert!(symlink_target(&symlink_reparse_data("a\0b")).is_err());
        let mut fifo = symlink_reparse_data("a");
        fifo[0] = 0x14;
        assert_eq!(symlink_target(&fifo), Err(Status::NOT_SUPPORTED));
    }

    proptest! {
        #[test]
        fn no_data_stops_the_reader(mut bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = symlink_target(&bytes);
            if let Some(tag) = bytes.get_mut(..4) {
                tag.copy_from_slice(&info::SYMLINK_TAG.to_le_bytes());
            }
            let _ = symlink_target(&bytes);
        }
    }
}
