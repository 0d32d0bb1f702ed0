//! The messages, and what they carry.

use std::net::IpAddr;
use std::time::Duration;

use crate::wire::{Reader, Writer};
use crate::{MAX_DATA, MAX_TO_GUEST, MAX_TO_HOST, Token, VERSION};

/// The word that a greeting begins with.
const GREETING: [u8; 9] = *b"cofferdam";
/// Room that a decoder keeps between messages.
pub(crate) const USUAL: usize = MAX_DATA + 64;
/// The longest text of a failure; it has to fit into a message to the host.
const MAX_TEXT: usize = 1024;

/// A message in one direction.
pub trait Message: Sized {
    /// The longest frame in this direction, without its length.
    const LONGEST: usize;

    /// Reads the body of a frame of this kind. `None`: it is no message.
    fn parse(kind: u8, body: &[u8]) -> Option<Self>;
}

/// What the host calls one thing that it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u32);

/// One of a call's outgoing streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output, the terminal, or a file's content.
    Output,
    /// Standard error.
    Error,
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    Hello {
        version: u16,
        token: Token,
    },
    Exec {
        call: CallId,
        exec: Exec,
    },
    Put {
        call: CallId,
        put: Put,
    },
    Get {
        call: CallId,
        path: Vec<u8>,
    },
    Mount {
        call: CallId,
        mount: Mount,
    },
    Unmount {
        call: CallId,
        target: Vec<u8>,
    },
    Network {
        call: CallId,
        network: Network,
    },
    /// Since 1970.
    SetTime {
        call: CallId,
        time: Duration,
    },
    Shutdown {
        call: CallId,
    },
    /// More of the call's input.
    Data {
        call: CallId,
        bytes: Vec<u8>,
    },
    /// The call's input has ended.
    End {
        call: CallId,
    },
    /// There is room for more of an output.
    Credit {
        call: CallId,
        stream: Stream,
        bytes: u32,
    },
    Resize {
        call: CallId,
        size: Size,
    },
    /// For the program's process group, and with a terminal for the one in its foreground.
    Signal {
        call: CallId,
        signal: u8,
    },
    /// Ends the call, and every process that it started.
    Kill {
        call: CallId,
    },
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToHost {
    Hello {
        version: u16,
        token: Token,
    },
    Started {
        call: CallId,
    },
    Opened {
        call: CallId,
        mode: u32,
        size: u64,
    },
    Exited {
        call: CallId,
        status: Status,
    },
    Done {
        call: CallId,
    },
    Failed {
        call: CallId,
        failure: Failure,
    },
    Data {
        call: CallId,
        stream: Stream,
        bytes: Vec<u8>,
    },
    End {
        call: CallId,
        stream: Stream,
    },
    /// There is room for more of the input.
    Credit {
        call: CallId,
        bytes: u32,
    },
    /// While the program ran nothing was left of what may be written over the root. Once at most.
    Full {
        call: CallId,
        shortage: Shortage,
    },
    /// The agent cannot go on: the last that it says before the machine is off.
    Dying {
        text: String,
    },
}

/// A program to execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The program, which is looked for in the `PATH` of `env` when it has no slash, and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE`, all there are.
    pub env: Vec<Vec<u8>>,
    pub cwd: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    /// A terminal of this size, or pipes.
    pub terminal: Option<Size>,
    pub leftover: Leftover,
}

/// What becomes of the processes that a program leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// They are killed when it has ended.
    Kill,
    /// They go on until the machine is off.
    Keep,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// A file to write. It is in its place, whole, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    pub path: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A file system to mount. The target is made where it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    /// What the kernel has as the source: a tag, `//ADDRESS/SHARE`, a device.
    pub source: Vec<u8>,
    pub target: Vec<u8>,
    /// The file system's own options, as mount(2) has them.
    pub options: Vec<u8>,
    pub read_only: bool,
}

/// A type of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    Cifs,
    Plan9,
    Virtiofs,
    Ext4,
    Tmpfs,
}

impl MountKind {
    pub const ALL: [MountKind; 5] =
        [MountKind::Cifs, MountKind::Plan9, MountKind::Virtiofs, MountKind::Ext4, MountKind::Tmpfs];

    /// As the kernel calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            MountKind::Cifs => "cifs",
            MountKind::Plan9 => "9p",
            MountKind::Virtiofs => "virtiofs",
            MountKind::Ext4 => "ext4",
            MountKind::Tmpfs => "tmpfs",
        }
    }

    fn number(self) -> u8 {
        match self {
            MountKind::Cifs => 1,
            MountKind::Plan9 => 2,
            MountKind::Virtiofs => 3,
            MountKind::Ext4 => 4,
            MountKind::Tmpfs => 5,
        }
    }
}

/// The machine's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The hardware address of the link.
    pub mac: [u8; 6],
    pub mtu: u32,
    /// With the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    /// The content of `/etc/resolv.conf`, of `/etc/hosts`, and the machine's name; what is `None` stays as it is.
    pub resolv_conf: Option<Vec<u8>>,
    pub hosts: Option<Vec<u8>>,
    pub host_name: Option<Vec<u8>>,
}

/// A default route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub gateway: IpAddr,
}

/// An address on the link whose hardware address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub address: IpAddr,
    pub mac: [u8; 6],
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Code(u8),
    Signal(u8),
}

/// What a full disk has nothing left of, and how much it has of that in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    Space { bytes: u64 },
    Files { count: u64 },
}

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    pub text: String,
}

/// What a caller may want to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The program or the file is not there.
    NotFound,
    /// The program is there and cannot be executed.
    NotExecutable,
    /// It was killed before it was done.
    Killed,
    /// Everything else.
    Refused,
}

impl Failure {
    /// A failure with as much of the text as there is room for.
    #[must_use]
    pub fn new(kind: FailureKind, text: &str) -> Failure {
        Failure { kind, text: cut(text).to_owned() }
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

impl ToGuest {
    /// The message as a frame. One that is longer than [`MAX_TO_GUEST`] is refused by the other side.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let of = |kind, call: &CallId| Writer::new(kind).u32(call.0);
        let writer = match self {
            ToGuest::Hello { version, token } => hello(*version, token),
            ToGuest::Exec { call, exec } => exec.emit(of(2, call)),
            ToGuest::Put { call, put } => of(3, call).bytes(&put.path).u32(put.mode).u32(put.uid).u32(put.gid),
            ToGuest::Get { call, path } => of(4, call).bytes(path),
            ToGuest::Mount { call, mount } => {
                let writer = of(5, call).u8(mount.kind.number()).u8(mount.read_only.into());
                writer.bytes(&mount.source).bytes(&mount.target).bytes(&mount.options)
            }
            ToGuest::Unmount { call, target } => of(6, call).bytes(target),
            ToGuest::Network { call, network } => network.emit(of(7, call)),
            ToGuest::SetTime { call, time } => of(8, call).u64(time.as_secs()).u32(time.subsec_nanos()),
            ToGuest::Shutdown { call } => of(9, call),
            ToGuest::Data { call, bytes } => of(16, call).raw(bytes),
            ToGuest::End { call } => of(17, call),
            ToGuest::Credit { call, stream, bytes } => of(18, call).u8(stream.number()).u32(*bytes),
            ToGuest::Resize { call, size } => size.emit(of(19, call)),
            ToGuest::Signal { call, signal } => of(20, call).u8(*signal),
            ToGuest::Kill { call } => of(21, call),
        };
        writer.finish()
    }
}

impl Message for ToGuest {
    const LONGEST: usize = MAX_TO_GUEST;

    fn parse(kind: u8, body: &[u8]) -> Option<ToGuest> {
        let mut reader = Reader(body);
        let message = ToGuest::read(kind, &mut reader)?;
        reader.0.is_empty().then_some(message)
    }
}

impl ToGuest {
    fn read(kind: u8, reader: &mut Reader<'_>) -> Option<ToGuest> {
        if kind == HELLO {
            let (version, token) = parse_hello(reader)?;
            return Some(ToGuest::Hello { version, token });
        }
        let call = CallId(reader.u32()?);
        Some(match kind {
            2 => ToGuest::Exec { call, exec: Exec::parse(reader)? },
            3 => {
                let (path, mode, uid, gid) = (reader.string()?, reader.u32()?, reader.u32()?, reader.u32()?);
                ToGuest::Put { call, put: Put { path, mode, uid, gid } }
            }
            4 => ToGuest::Get { call, path: reader.string()? },
            5 => ToGuest::Mount { call, mount: Mount::parse(reader)? },
            6 => ToGuest::Unmount { call, target: reader.string()? },
            7 => ToGuest::Network { call, network: Network::parse(reader)? },
            8 => {
                let (seconds, nanoseconds) = (reader.u64()?, reader.u32().filter(|part| *part < 1_000_000_000)?);
                ToGuest::SetTime { call, time: Duration::new(seconds, nanoseconds) }
            }
            9 => ToGuest::Shutdown { call },
            16 => ToGuest::Data { call, bytes: reader.rest().to_vec() },
            17 => ToGuest::End { call },
            18 => ToGuest::Credit { call, stream: Stream::parse(reader)?, bytes: reader.u32()? },
            19 => ToGuest::Resize { call, size: Size::parse(reader)? },
            20 => ToGuest::Signal { call, signal: reader.u8()? },
            21 => ToGuest::Kill { call },
            _ => return None,
        })
    }
}

impl ToHost {
    /// The message as a frame.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let of = |kind, call: &CallId| Writer::new(kind).u32(call.0);
        let writer = match self {
            ToHost::Hello { version, token } => hello(*version, token),
            ToHost::Started { call } => of(2, call),
            ToHost::Opened { call, mode, size } => of(3, call).u32(*mode).u64(*size),
            ToHost::Exited { call, status: Status::Code(code) } => of(4, call).u8(0).u8(*code),
            ToHost::Exited { call, status: Status::Signal(signal) } => of(4, call).u8(1).u8(*signal),
            ToHost::Done { call } => of(5, call),
            ToHost::Failed { call, failure } => {
                of(6, call).u8(failure.kind.number()).bytes(cut(&failure.text).as_bytes())
            }
            ToHost::Data { call, stream, bytes } => of(16, call).u8(stream.number()).raw(bytes),
            ToHost::End { call, stream } => of(17, call).u8(stream.number()),
            ToHost::Credit { call, bytes } => of(18, call).u32(*bytes),
            ToHost::Full { call, shortage: Shortage::Space { bytes } } => of(19, call).u8(0).u64(*bytes),
            ToHost::Full { call, shortage: Shortage::Files { count } } => of(19, call).u8(1).u64(*count),
            ToHost::Dying { text } => Writer::new(DYING).bytes(cut(text).as_bytes()),
        };
        writer.finish()
    }
}

impl Message for ToHost {
    const LONGEST: usize = MAX_TO_HOST;

    fn parse(kind: u8, body: &[u8]) -> Option<ToHost> {
        let mut reader = Reader(body);
        let message = ToHost::read(kind, &mut reader)?;
        reader.0.is_empty().then_some(message)
    }
}

impl ToHost {
    fn read(kind: u8, reader: &mut Reader<'_>) -> Option<ToHost> {
        match kind {
            HELLO => {
                let (version, token) = parse_hello(reader)?;
                return Some(ToHost::Hello { version, token });
            }
            DYING => return Some(ToHost::Dying { text: reader.text().filter(|text| text.len() <= MAX_TEXT)? }),
            _ => {}
        }
        let call = CallId(reader.u32()?);
        Some(match kind {
            2 => ToHost::Started { call },
            3 => ToHost::Opened { call, mode: reader.u32()?, size: reader.u64()? },
            4 => {
                let status = match (reader.u8()?, reader.u8()?) {
                    (0, code) => Status::Code(code),
                    (1, signal) => Status::Signal(signal),
                    _ => return None,
                };
                ToHost::Exited { call, status }
            }
            5 => ToHost::Done { call },
            6 => {
                let kind = FailureKind::parse(reader)?;
                let text = reader.text().filter(|text| text.len() <= MAX_TEXT)?;
                ToHost::Failed { call, failure: Failure { kind, text } }
            }
            16 => {
                let stream = Stream::parse(reader)?;
                let bytes = reader.rest().to_vec();
                if bytes.is_empty() || bytes.len() > MAX_DATA {
                    return None;
                }
                ToHost::Data { call, stream, bytes }
            }
            17 => ToHost::End { call, stream: Stream::parse(reader)? },
            18 => ToHost::Credit { call, bytes: reader.u32()? },
            19 => {
                let shortage = match (reader.u8()?, reader.u64()?) {
                    (0, bytes) => Shortage::Space { bytes },
                    (1, count) => Shortage::Files { count },
                    _ => return None,
                };
                ToHost::Full { call, shortage }
            }
            _ => return None,
        })
    }
}

const HELLO: u8 = 1;
const DYING: u8 = 7;

fn hello(version: u16, token: &Token) -> Writer {
    Writer::new(HELLO).raw(&GREETING).u16(version).raw(token.bytes())
}

/// A greeting of another version is read no further than that.
fn parse_hello(reader: &mut Reader<'_>) -> Option<(u16, Token)> {
    reader.take().filter(|word| *word == GREETING)?;
    let version = reader.u16()?;
    if version != VERSION {
        reader.rest();
        return Some((version, Token::new([0; Token::LENGTH])));
    }
    Some((version, Token::new(reader.take()?)))
}

impl Exec {
    fn emit(&self, writer: Writer) -> Writer {
        let strings = |writer: Writer, strings: &[Vec<u8>]| writer.list(strings, |writer, string| writer.bytes(string));
        let writer = strings(strings(writer, &self.argv), &self.env).bytes(&self.cwd).u32(self.uid).u32(self.gid);
        let leftover = match self.leftover {
            Leftover::Kill => 0,
            Leftover::Keep => 1,
        };
        writer.option(self.terminal.as_ref(), |writer, size| size.emit(writer)).u8(leftover)
    }

    fn parse(reader: &mut Reader<'_>) -> Option<Exec> {
        let argv = reader.list(Reader::string)?;
        let env = reader.list(Reader::string)?;
        let (cwd, uid, gid) = (reader.string()?, reader.u32()?, reader.u32()?);
        let terminal = reader.option(Size::parse)?;
        let leftover = match reader.u8()? {
            0 => Leftover::Kill,
            1 => Leftover::Keep,
            _ => return None,
        };
        Some(Exec { argv, env, cwd, uid, gid, terminal, leftover })
    }
}

impl Mount {
    fn parse(reader: &mut Reader<'_>) -> Option<Mount> {
        let number = reader.u8()?;
        let kind = MountKind::ALL.into_iter().find(|kind| kind.number() == number)?;
        let read_only = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Mount { kind, source: reader.string()?, target: reader.string()?, options: reader.string()?, read_only })
    }
}

impl Network {
    fn emit(&self, writer: Writer) -> Writer {
        let writer = writer.raw(&self.mac).u32(self.mtu);
        let writer = writer.list(&self.addresses, |writer, (address, prefix)| writer.address(*address).u8(*prefix));
        let writer = writer.list(&self.routes, |writer, route| writer.address(route.gateway));
        let writer = writer.list(&self.neighbours, |writer, at| writer.address(at.address).raw(&at.mac));
        let files = [&self.resolv_conf, &self.hosts, &self.host_name];
        files.into_iter().fold(writer, |writer, file| writer.option(file.as_ref(), |writer, bytes| writer.bytes(bytes)))
    }

    fn parse(reader: &mut Reader<'_>) -> Option<Network> {
        let bytes = |reader: &mut Reader<'_>| reader.bytes().map(<[u8]>::to_vec);
        Some(Network {
            mac: reader.take()?,
            mtu: reader.u32()?,
            addresses: reader.list(|reader| {
                let (address, prefix) = (reader.address()?, reader.u8()?);
                let bits = if address.is_ipv4() { 32 } else { 128 };
                (prefix <= bits).then_some((address, prefix))
            })?,
            routes: reader.list(|reader| Some(Route { gateway: reader.address()? }))?,
            neighbours: reader.list(|reader| Some(Neighbour { address: reader.address()?, mac: reader.take()? }))?,
            resolv_conf: reader.option(bytes)?,
            hosts: reader.option(bytes)?,
            host_name: reader.option(Reader::string)?,
        })
    }
}

impl Size {
    fn emit(self, writer: Writer) -> Writer {
        writer.u16(self.rows).u16(self.columns)
    }

    fn parse(reader: &mut Reader<'_>) -> Option<Size> {
        Some(Size { rows: reader.u16()?, columns: reader.u16()? })
    }
}

impl Stream {
    fn number(self) -> u8 {
        match self {
            Stream::Output => 1,
            Stream::Error => 2,
        }
    }

    fn parse(reader: &mut Reader<'_>) -> Option<Stream> {
        match reader.u8()? {
            1 => Some(Stream::Output),
            2 => Some(Stream::Error),
            _ => None,
        }
    }
}

impl FailureKind {
    fn number(self) -> u8 {
        match self {
            FailureKind::NotFound => 1,
            FailureKind::NotExecutable => 2,
            FailureKind::Killed => 3,
            FailureKind::Refused => 4,
        }
    }

    fn parse(reader: &mut Reader<'_>) -> Option<FailureKind> {
        Some(match reader.u8()? {
            1 => FailureKind::NotFound,
            2 => FailureKind::NotExecutable,
            3 => FailureKind::Killed,
            4 => FailureKind::Refused,
            _ => return None,
        })
    }
}
