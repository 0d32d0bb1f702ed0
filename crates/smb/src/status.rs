//! The answers of the protocol, MS-ERREF 2.3, and which of them an error of the system becomes.

use rustix::io::Errno;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const PENDING: Status = Status(0x0000_0103);
    pub const BUFFER_OVERFLOW: Status = Status(0x8000_0005);
    pub const NO_MORE_FILES: Status = Status(0x8000_0006);
    pub const STOPPED_ON_SYMLINK: Status = Status(0x8000_002d);
    pub const INVALID_INFO_CLASS: Status = Status(0xc000_0003);
    pub const INFO_LENGTH_MISMATCH: Status = Status(0xc000_0004);
    pub const INVALID_HANDLE: Status = Status(0xc000_0008);
    pub const INVALID_PARAMETER: Status = Status(0xc000_000d);
    pub const NO_SUCH_FILE: Status = Status(0xc000_000f);
    pub const END_OF_FILE: Status = Status(0xc000_0011);
    pub const MORE_PROCESSING_REQUIRED: Status = Status(0xc000_0016);
    pub const ACCESS_DENIED: Status = Status(0xc000_0022);
    pub const BUFFER_TOO_SMALL: Status = Status(0xc000_0023);
    pub const OBJECT_NAME_INVALID: Status = Status(0xc000_0033);
    pub const OBJECT_NAME_NOT_FOUND: Status = Status(0xc000_0034);
    pub const OBJECT_NAME_COLLISION: Status = Status(0xc000_0035);
    pub const OBJECT_PATH_NOT_FOUND: Status = Status(0xc000_003a);
    pub const OBJECT_PATH_SYNTAX_BAD: Status = Status(0xc000_003b);
    pub const EAS_NOT_SUPPORTED: Status = Status(0xc000_004f);
    pub const FILE_LOCK_CONFLICT: Status = Status(0xc000_0054);
    pub const LOCK_NOT_GRANTED: Status = Status(0xc000_0055);
    pub const LOGON_FAILURE: Status = Status(0xc000_006d);
    pub const RANGE_NOT_LOCKED: Status = Status(0xc000_007e);
    pub const DISK_FULL: Status = Status(0xc000_007f);
    pub const INSUFFICIENT_RESOURCES: Status = Status(0xc000_009a);
    pub const MEDIA_WRITE_PROTECTED: Status = Status(0xc000_00a2);
    pub const FILE_IS_A_DIRECTORY: Status = Status(0xc000_00ba);
    pub const NOT_SUPPORTED: Status = Status(0xc000_00bb);
    pub const NETWORK_NAME_DELETED: Status = Status(0xc000_00c9);
    pub const BAD_NETWORK_NAME: Status = Status(0xc000_00cc);
    pub const REQUEST_NOT_ACCEPTED: Status = Status(0xc000_00d0);
    pub const NOT_SAME_DEVICE: Status = Status(0xc000_00d4);
    pub const UNEXPECTED_IO_ERROR: Status = Status(0xc000_00e9);
    pub const DIRECTORY_NOT_EMPTY: Status = Status(0xc000_0101);
    pub const NOT_A_DIRECTORY: Status = Status(0xc000_0103);
    pub const NAME_TOO_LONG: Status = Status(0xc000_0106);
    pub const TOO_MANY_OPENED_FILES: Status = Status(0xc000_011f);
    pub const CANCELLED: Status = Status(0xc000_0120);
    pub const CANNOT_DELETE: Status = Status(0xc000_0121);
    pub const FILE_CLOSED: Status = Status(0xc000_0128);
    pub const FS_DRIVER_REQUIRED: Status = Status(0xc000_019c);
    pub const INVALID_LOCK_RANGE: Status = Status(0xc000_01a1);
    pub const USER_SESSION_DELETED: Status = Status(0xc000_0203);
    pub const NOT_A_REPARSE_POINT: Status = Status(0xc000_0275);
    pub const IO_REPARSE_TAG_INVALID: Status = Status(0xc000_0276);
    pub const IO_REPARSE_DATA_INVALID: Status = Status(0xc000_0278);
    pub const TOO_MANY_LINKS: Status = Status(0xc000_0265);
    pub const FILE_TOO_LARGE: Status = Status(0xc000_0904);
}

impl From<Errno> for Status {
    fn from(errno: Errno) -> Status {
        match errno {
            Errno::NOENT => Status::OBJECT_NAME_NOT_FOUND,
            // A link on the way: nothing is followed here.
            Errno::LOOP | Errno::XDEV => Status::OBJECT_PATH_NOT_FOUND,
            Errno::NOTDIR => Status::NOT_A_DIRECTORY,
            Errno::ACCESS | Errno::PERM | Errno::TXTBSY => Status::ACCESS_DENIED,
            Errno::EXIST => Status::OBJECT_NAME_COLLISION,
            Errno::ISDIR => Status::FILE_IS_A_DIRECTORY,
            Errno::NOTEMPTY => Status::DIRECTORY_NOT_EMPTY,
            Errno::BUSY => Status::CANNOT_DELETE,
            Errno::ROFS => Status::MEDIA_WRITE_PROTECTED,
            Errno::NOSPC | Errno::DQUOT => Status::DISK_FULL,
            Errno::FBIG => Status::FILE_TOO_LARGE,
            Errno::MLINK => Status::TOO_MANY_LINKS,
            Errno::NAMETOOLONG => Status::NAME_TOO_LONG,
            Errno::MFILE | Errno::NFILE => Status::TOO_MANY_OPENED_FILES,
            Errno::NOMEM => Status::INSUFFICIENT_RESOURCES,
            Errno::BADF => Status::INVALID_HANDLE,
            Errno::INVAL => Status::INVALID_PARAMETER,
            Errno::OPNOTSUPP | Errno::NOSYS => Status::NOT_SUPPORTED,
            Errno::AGAIN => Status::LOCK_NOT_GRANTED,
            _ => Status::UNEXPECTED_IO_ERROR,
        }
    }
}
