//! What QEMU is started with.
//!
//! A [`Vm`] is a description without a machine behind it: paths are those that QEMU sees, descriptors are the numbers that it
//! has them under. [`Vm::arguments`] is a pure function of it, which is what `cofferdam vm args` prints.
//!
//! Options come in groups, in this order: the machine, its processors and memory; what is switched off; the kernel; the console,
//! the agent's channel and QMP; random numbers; the network; the root; shared directories.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

/// The name of the port that the agent in the guest opens.
pub const AGENT_PORT: &str = "cofferdam.agent";

/// Where the guest finds file servers under the engine `slirp`, in the network that QEMU makes for it.
pub const SLIRP_FILES: &str = "10.0.2.100:445";

/// What the agent takes from the kernel's command line for its root, and for how much may be written over it.
const ROOT_WORD: &str = "cofferdam.root=";
const OVERLAY_WORD: &str = "cofferdam.overlay=";

/// A processor that QEMU translates for has all that QEMU can, but for the words that string instructions are fast (`erms`, `fsrm`;
/// FZRM and FSRS, which older versions of QEMU have no word for, are in the part of CPUID that `level-func7` ends before). Told so, Linux
/// copies and clears memory with `rep movsb` and `rep stosb`, which are executed byte by byte: with Debian 12's kernel on QEMU 7.2
/// 400 MiB of zeros read from `/dev/zero` take 1.1 s that way and 0.2 s without, 200 MiB written to a tmpfs 2.3 s and 1.1 s.
const TRANSLATED_X86_64: &str = "max,-erms,-fsrm,level-func7=0";

/// Linux signs each address that it returns to, and QEMU computes ARM's own cipher for that, twice for each function; `pauth-impdef`
/// is one of QEMU's that costs little. Debian 12's kernel boots in 1.7 s of QEMU 7.2's with it and in 5.8 s without.
const TRANSLATED_AARCH64: &str = "max,pauth-impdef=on";

/// What a kernel is told where its instructions are translated:
///
/// - What it does against a processor that speculates costs a tenth of the boot and protects nothing: the barriers and detours are
///   among the guest's instructions, not in the code that the host's processor is given.
/// - Debian's kernel clears each page that it hands out, which protects the guest from mistakes of its own kernel and nobody else.
///   Without that a guest's network moves a quarter more both ways, 200 MiB written to a tmpfs take 0.66 s in place of 0.73, and
///   80 MB through a pipe 0.52 s in place of 0.69.
/// - Of each packet sent the card's driver has an interrupt, unless it looks itself what has been sent when it sends more. An interrupt
///   costs much here. One TCP stream out, Debian 12's kernel with one processor: 3.8 Gbit/s in place of 3.1 with writes of 256 KiB,
///   1.24 in place of 1.01 with 16 KiB. Writes of 1 KiB lose, 0.16 in place of 0.19: what waits in the card's queue would have held
///   them back until there are more.
const TRANSLATED_KERNEL: &str = " mitigations=off init_on_alloc=0 virtio_net.napi_tx=0";

/// Requests that a guest may have on their way to a directory by virtiofs: the most that QEMU takes. Fewer are waited for.
const DEVICE_QUEUE: u16 = 1024;

/// The hardware address of a guest's card there: one that is administered locally, as QEMU's own default is not.
pub const SLIRP_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// A virtual machine, as QEMU is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    pub architecture: Architecture,
    pub accelerator: Accelerator,
    /// MiB of memory.
    pub memory: u64,
    pub cpus: NonZeroU32,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// What the kernel is told besides where its console is.
    pub append: String,
    /// The descriptor of the agent's channel: a connected stream socket.
    pub agent: u32,
    /// The descriptor of QMP: as before.
    pub control: u32,
    pub network: Network,
    /// What is the guest's root in place of the initramfs.
    pub root: Option<Root>,
    pub shares: Vec<Share>,
    pub devices: Vec<SharedDevice>,
}

/// A guest's root. QEMU reads it and no more; what the guest writes it keeps itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub source: RootSource,
    /// The most bytes that the guest keeps of what it writes; half of its memory without.
    pub overlay: Option<u64>,
}

/// Where a root is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// In a directory, by 9p.
    Directory(PathBuf),
    /// In the image of a disk.
    Image(PathBuf, ImageFormat),
}

/// How a disk is written in its image. QEMU is told, and never guesses: a raw image's first bytes are its own, and may say that
/// it is one of another format, which leads to further files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    Raw,
    Qcow2,
}

/// What kind of processor, and with it which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `q35`; devices on PCI.
    X86_64,
    /// `virt`; devices on virtio-mmio.
    Aarch64,
}

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// QEMU itself.
    Tcg,
}

/// What a machine's network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// There is no card.
    None,
    /// A TAP device in a gateway's namespace, the engine `gateway`.
    Tap {
        /// Its descriptor.
        fd: u32,
        /// That of `/dev/vhost-net`, where it may be opened.
        vhost: Option<u32>,
        mac: [u8; 6],
        mtu: u16,
    },
    /// QEMU's own network, the engine `slirp`.
    Slirp {
        reach: Reach,
        /// Ports of 127.0.0.1, and the guest's ports that they lead to.
        forwards: Vec<PortForward>,
        /// The command that serves files, one process per connection.
        files: Option<String>,
    },
}

/// What a guest reaches by QEMU's own network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// What the process of QEMU reaches.
    Everything,
    /// What is forwarded to it, and its files.
    Forwards,
}

/// A TCP port of this host that leads to one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortForward {
    pub host: u16,
    pub guest: u16,
}

/// A directory that the guest mounts by 9p.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What the guest mounts.
    pub tag: String,
    pub path: PathBuf,
    pub access: Access,
}

/// A directory that the guest mounts by virtiofs, from a program that has the guest's memory in common with QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDevice {
    /// What the guest mounts.
    pub tag: String,
    /// The descriptor of a connected stream socket, with that program at its other end.
    pub fd: u32,
}

/// What the guest may do in a shared directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Vm {
    /// The arguments of QEMU, without its own name.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut words = Words::default();
        self.machine(&mut words);
        self.absent(&mut words);
        self.boot(&mut words);
        self.channels(&mut words);
        words.option("-object", "rng-random,id=rng0,filename=/dev/urandom");
        words.option("-device", format!("{},rng=rng0", self.virtio("virtio-rng")));
        self.network(&mut words);
        self.root(&mut words);
        self.shares(&mut words);
        self.devices(&mut words);
        words.0
    }

    fn machine(&self, words: &mut Words) {
        let Vm { architecture, accelerator, memory, cpus, .. } = self;
        let machine = match architecture {
            Architecture::X86_64 => "q35",
            Architecture::Aarch64 => "virt",
        };
        if self.devices.is_empty() {
            words.option("-machine", machine);
        } else {
            // Who serves a device is given the guest's memory by descriptor.
            words.option("-object", format!("memory-backend-memfd,id=memory,size={memory}M,share=on"));
            words.option("-machine", format!("{machine},memory-backend=memory"));
        }
        let (accelerator, processor) = match (accelerator, architecture) {
            (Accelerator::Kvm, _) => ("kvm", "host"),
            // Translated code for several processors is made by one thread each.
            (Accelerator::Tcg, Architecture::X86_64) => ("tcg,thread=multi", TRANSLATED_X86_64),
            (Accelerator::Tcg, Architecture::Aarch64) => ("tcg,thread=multi", TRANSLATED_AARCH64),
        };
        words.option("-accel", accelerator);
        words.option("-cpu", processor);
        words.option("-smp", cpus.to_string());
        words.option("-m", format!("{memory}M"));
    }

    /// What a machine has unless it is told not to, and what QEMU may not do any more.
    fn absent(&self, words: &mut Words) {
        words.flag("-nodefaults");
        words.flag("-no-user-config");
        // A guest that restarts has ended, after a panic as well.
        words.flag("-no-reboot");
        words.option("-display", "none");
        words.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        if self.architecture == Architecture::X86_64 {
            // The card's boot program, which nobody needs, is a file that not every distribution installs.
            words.option("-global", "virtio-net-pci.romfile=");
        }
    }

    fn boot(&self, words: &mut Words) {
        words.option("-kernel", &self.kernel);
        words.option("-initrd", &self.initrd);
        let console = match self.architecture {
            Architecture::X86_64 => "ttyS0",
            Architecture::Aarch64 => "ttyAMA0",
        };
        let mut append = self.append.clone();
        if let Some(root) = &self.root {
            let space = if append.is_empty() { "" } else { " " };
            append = format!("{append}{space}{}", root.words());
        }
        let space = if append.is_empty() { "" } else { " " };
        // After a panic it restarts at once, which ends QEMU. Its ciphers are tested by whoever makes the kernel: 0.3 of
        // 2.5 s. And without KVM on a busy host it would panic over a timer that has not ticked when it looked.
        let accelerator = match self.accelerator {
            Accelerator::Kvm => "",
            Accelerator::Tcg => TRANSLATED_KERNEL,
        };
        words.option(
            "-append",
            format!("console={console} quiet panic=-1 cryptomgr.notests no_timer_check{accelerator}{space}{append}"),
        );
    }

    fn channels(&self, words: &mut Words) {
        // What the kernel says on its console is the standard output of QEMU.
        words.option("-chardev", "stdio,id=console,signal=off");
        words.option("-serial", "chardev:console");
        words.option("-chardev", format!("socket,id=agent,fd={}", self.agent));
        words.option("-device", self.virtio("virtio-serial"));
        words.option("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT}"));
        words.option("-chardev", format!("socket,id=control,fd={}", self.control));
        words.option("-mon", "chardev=control,mode=control");
    }

    fn network(&self, words: &mut Words) {
        match &self.network {
            Network::None => words.option("-nic", "none"),
            Network::Tap { fd, vhost, mac, mtu } => {
                let vhost = vhost.map(|fd| format!(",vhost=on,vhostfd={fd}")).unwrap_or_default();
                words.option("-netdev", format!("tap,id=net0,fd={fd}{vhost}"));
                let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                words.option("-device", format!("{},netdev=net0,mac={mac},host_mtu={mtu}", self.virtio("virtio-net")));
            }
            Network::Slirp { reach, forwards, files } => {
                let mut netdev = "user,id=net0".to_owned();
                if *reach == Reach::Forwards {
                    netdev.push_str(",restrict=on");
                }
                for PortForward { host, guest } in forwards {
                    netdev.push_str(&format!(",hostfwd=tcp:{}:{host}-:{guest}", Ipv4Addr::LOCALHOST));
                }
                if let Some(command) = files {
                    netdev.push_str(&format!(",guestfwd=tcp:{SLIRP_FILES}-cmd:{}", escaped(command)));
                }
                words.option("-netdev", netdev);
                let mac = SLIRP_MAC.map(|byte| format!("{byte:02x}")).join(":");
                words.option("-device", format!("{},netdev=net0,mac={mac}", self.virtio("virtio-net")));
            }
        }
    }

    fn root(&self, words: &mut Words) {
        match self.root.as_ref().map(|root| &root.source) {
            None => {}
            Some(RootSource::Directory(path)) => self.share(words, "root", "root", path, Access::Read),
            Some(RootSource::Image(path, format)) => {
                let mut file: OsString = "driver=file,node-name=root-file,read-only=on,filename=".into();
                file.push(escaped_path(path));
                words.option("-blockdev", file);
                words.option(
                    "-blockdev",
                    match format {
                        ImageFormat::Raw => "driver=raw,node-name=root,read-only=on,file=root-file",
                        // `null` can be said in JSON alone: what the image names as its backing file is not opened.
                        ImageFormat::Qcow2 => {
                            r#"{"driver":"qcow2","node-name":"root","read-only":true,"file":"root-file","backing":null}"#
                        }
                    },
                );
                words.option("-device", format!("{},drive=root", self.virtio("virtio-blk")));
            }
        }
    }

    fn shares(&self, words: &mut Words) {
        for (number, Share { tag, path, access }) in self.shares.iter().enumerate() {
            self.share(words, &format!("share{number}"), tag, path, *access);
        }
    }

    fn share(&self, words: &mut Words, id: &str, tag: &str, path: &Path, access: Access) {
        let read_only = match access {
            Access::Read => ",readonly=on",
            Access::Write => "",
        };
        let mut share: OsString = format!("local,id={id},security_model=none,multidevs=remap,path=").into();
        share.push(escaped_path(path));
        share.push(read_only);
        words.option("-fsdev", share);
        words.option("-device", format!("{},fsdev={id},mount_tag={tag}", self.virtio("virtio-9p")));
    }

    fn devices(&self, words: &mut Words) {
        for (number, SharedDevice { tag, fd }) in self.devices.iter().enumerate() {
            words.option("-chardev", format!("socket,id=device{number},fd={fd}"));
            let device = self.virtio("vhost-user-fs");
            words.option("-device", format!("{device},chardev=device{number},tag={tag},queue-size={DEVICE_QUEUE}"));
        }
    }

    /// The name of a virtio device, which says where it is attached.
    fn virtio(&self, name: &str) -> String {
        let bus = match self.architecture {
            Architecture::X86_64 => "pci",
            Architecture::Aarch64 => "device",
        };
        format!("{name}-{bus}")
    }
}

impl Root {
    /// What the agent is told on the kernel's command line.
    fn words(&self) -> String {
        let root = match &self.source {
            RootSource::Directory(_) => "9p:root",
            RootSource::Image(..) => "disk:vda",
        };
        match self.overlay {
            None => format!("{ROOT_WORD}{root}"),
            Some(bytes) => format!("{ROOT_WORD}{root} {OVERLAY_WORD}{bytes}"),
        }
    }
}

impl Architecture {
    /// That of this host, which is the only one that KVM executes.
    #[must_use]
    pub fn of_this_host() -> Option<Architecture> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Architecture::X86_64),
            "aarch64" => Some(Architecture::Aarch64),
            _ => None,
        }
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "aarch64",
        }
    }

    /// The program that is such a machine.
    #[must_use]
    pub fn qemu(self) -> &'static str {
        match self {
            Architecture::X86_64 => "qemu-system-x86_64",
            Architecture::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The package of Debian that this program is in.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Architecture::X86_64 => "qemu-system-x86",
            Architecture::Aarch64 => "qemu-system-arm",
        }
    }
}

impl Accelerator {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "TCG",
        }
    }
}

#[derive(Default)]
struct Words(Vec<OsString>);

impl Words {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }

    fn option(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.extend([flag.into(), value.into()]);
    }
}

/// In a list of properties a comma is written twice.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

fn escaped_path(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        bytes.extend(std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const BOTH: [Architecture; 2] = [Architecture::X86_64, Architecture::Aarch64];

    pub(crate) fn vm(architecture: Architecture, network: Network) -> Vm {
        Vm {
            architecture,
            accelerator: Accelerator::Tcg,
            memory: 512,
            cpus: NonZeroU32::new(2).unwrap(),
            kernel: "/vm/kernel".into(),
            initrd: "/vm/initrd".into(),
            append: String::new(),
            agent: 3,
            control: 4,
            network,
            root: None,
            shares: Vec::new(),
            devices: Vec::new(),
        }
    }

    /// One option per line.
    fn lines(vm: &Vm) -> String {
        let mut text = String::new();
        for word in vm.arguments() {
            let word = word.to_str().unwrap().to_owned();
            if !text.is_empty() {
                text.push(if word.starts_with('-') { '\n' } else { ' ' });
            }
            text.push_str(&word);
        }
        text
    }

    fn tap() -> Network {
        Network::Tap { fd: 5, vhost: None, mac: [2, 0, 0, 0, 0xab, 2], mtu: 65_520 }
    }

    fn slirp(reach: Reach, forwards: &[(u16, u16)]) -> Network {
        let forwards = forwards.iter().map(|(host, guest)| PortForward { host: *host, guest: *guest }).collect();
        Network::Slirp { reach, forwards, files: Some("cofferdam smb --stdio a,b".to_owned()) }
    }

    #[test]
    fn without_a_network() {
        for architecture in BOTH {
            insta::assert_snapshot!(format!("none-{}", architecture.qemu()), lines(&vm(architecture, Network::None)));
        }
    }

    #[test]
    fn on_a_gateway() {
        for architecture in BOTH {
            insta::assert_snapshot!(format!("gateway-{}", architecture.qemu()), lines(&vm(architecture, tap())));
        }
    }

    #[test]
    fn with_mounts_only_on_slirp() {
        for architecture in BOTH {
            let network = slirp(Reach::Forwards, &[]);
            insta::assert_snapshot!(
                format!("slirp-mounts-only-{}", architecture.qemu()),
                lines(&vm(architecture, network))
            );
        }
    }

    #[test]
    fn with_everything_on_slirp_and_ports() {
        for architecture in BOTH {
            let network = slirp(Reach::Everything, &[(8080, 80), (2222, 22)]);
            insta::assert_snapshot!(format!("slirp-full-{}", architecture.qemu()), lines(&vm(architecture, network)));
        }
    }

    #[test]
    fn with_a_root() {
        for architecture in BOTH {
            let with = |source, overlay| {
                let root = Some(Root { source, overlay });
                lines(&Vm { root, append: "cofferdam.test=1".to_owned(), ..vm(architecture, Network::None) })
            };
            let name = |kind: &str| format!("root-{kind}-{}", architecture.qemu());
            insta::assert_snapshot!(name("directory"), with(RootSource::Directory("/vm/a,b".into()), None));
            let image = |format| RootSource::Image("/vm/a,b".into(), format);
            insta::assert_snapshot!(name("raw"), with(image(ImageFormat::Raw), Some(1 << 30)));
            insta::assert_snapshot!(name("qcow2"), with(image(ImageFormat::Qcow2), None));
        }
    }

    #[test]
    fn with_shares_by_virtiofs() {
        for architecture in BOTH {
            let device = |number: u32| SharedDevice { tag: format!("share{number}"), fd: 6 + number };
            let vm = Vm { devices: vec![device(0), device(1)], ..vm(architecture, tap()) };
            insta::assert_snapshot!(format!("virtiofs-{}", architecture.qemu()), lines(&vm));
        }
    }

    #[test]
    fn with_shares_and_kvm_and_vhost() {
        for architecture in BOTH {
            let Network::Tap { fd, mac, mtu, .. } = tap() else { unreachable!() };
            let shares = vec![
                Share { tag: "share0".to_owned(), path: "/shares/0".into(), access: Access::Write },
                Share { tag: "share1".to_owned(), path: "/shares/a,b".into(), access: Access::Read },
            ];
            let vm = Vm {
                accelerator: Accelerator::Kvm,
                append: "cofferdam.test=1".to_owned(),
                shares,
                ..vm(architecture, Network::Tap { fd, vhost: Some(6), mac, mtu })
            };
            insta::assert_snapshot!(format!("shares-{}", architecture.qemu()), lines(&vm));
        }
    }
}
