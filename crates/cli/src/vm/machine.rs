//! What QEMU would be started with, and what `run --backend vm` is made from on this machine.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::PathBuf;

use cofferdam_control::vm::{
    Accelerator, Access, Architecture, DEFAULT_MEMORY, Network, PortForward, Reach, Root, Share, SharedDevice, Vm,
    cpus, root_source,
};
use cofferdam_control::{Engine, Kit, Progress, Virtiofsd, VirtiofsdError, VmOptions, Wish};

use super::setup::{INITRAMFS, KERNEL};
use crate::args::{AcceleratorWord, ArchitectureWord, EngineWord, ModeOfVm, SharingWord, VmArgsArgs};
use crate::output;
use crate::refusal::Refusal;
use crate::state;

/// Where QEMU is looked for when there is no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What `vm args` shows in the place of descriptors.
const SHOWN_DESCRIPTORS: [u32; 3] = [3, 4, 5];
/// And from this on in the place of those of devices that are programs.
const SHOWN_DEVICES: u32 = 6;
/// And in the place of a hardware address that is drawn for each sandbox.
const SHOWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// The MTU of a link for which nothing is said.
const SHOWN_MTU: u16 = 65_520;

/// `cofferdam vm args`.
pub(crate) fn show(args: &VmArgsArgs) -> u8 {
    match arguments(args) {
        Ok(words) => print(&words, args.json),
        Err(refusal) => refusal.tell(args.json),
    }
}

/// Where the parts of virtual machines of this kind are.
fn folder(architecture: Architecture) -> Result<PathBuf, Refusal> {
    Ok(state::directory()?.join("vm").join(architecture.word()))
}

/// What a run in a virtual machine is made from here.
pub(crate) fn options() -> Result<VmOptions, Refusal> {
    options_for(None)
}

/// The same, for a machine with this kind of processor, or with that of this host.
pub(crate) fn options_for(architecture: Option<ArchitectureWord>) -> Result<VmOptions, Refusal> {
    let architecture = match architecture {
        Some(word) => word.architecture(),
        None => this_host("--backend vm cannot be used")?,
    };
    let folder = cofferdam_control::check_guests(&state::directory()?, architecture.word())
        .map_err(|error| Refusal::setup(format!("--backend vm cannot be used: {error}")))?;
    let kit = Kit::find(architecture, &search_path(), &folder.join(KERNEL), &folder.join(INITRAMFS))
        .map_err(|error| Refusal::setup(format!("--backend vm cannot be used: {error}")))?;
    let progress = if std::io::stderr().is_terminal() { Progress::Tell } else { Progress::Silent };
    Ok(VmOptions { kit, wish: Wish::Best, notes: Some(folder), sharing: None, progress, engine: Engine::Gateway })
}

/// What serves directories by virtiofs here.
pub(crate) fn virtiofsd() -> Result<Virtiofsd, VirtiofsdError> {
    Virtiofsd::find()
}

fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

fn this_host(then: &str) -> Result<Architecture, Refusal> {
    let refusal = || {
        Refusal::setup(format!(
            "there are no virtual machines for processors of type {}: {then}",
            std::env::consts::ARCH
        ))
    };
    Architecture::of_this_host().ok_or_else(refusal)
}

/// The words of a command line that starts such a machine.
fn arguments(args: &VmArgsArgs) -> Result<Vec<OsString>, Refusal> {
    let architecture = match args.arch {
        Some(word) => word.architecture(),
        None => Architecture::of_this_host().ok_or_else(|| {
            Refusal::setup("there are no virtual machines for this processor: name one with --arch".to_owned())
        })?,
    };
    let [agent, control, _] = SHOWN_DESCRIPTORS;
    let part = |given: &Option<PathBuf>, name: &str| -> Result<PathBuf, Refusal> {
        match given {
            Some(path) => Ok(path.clone()),
            None => Ok(folder(architecture)?.join(name)),
        }
    };
    let network = network(args)?;
    let tag = |number: usize| format!("share{number}");
    let (by_device, by_program): (&[_], _) = match (args.mount_via, &network) {
        // What is served over a network is nothing of QEMU's.
        (None, Network::Tap { .. }) | (Some(SharingWord::Smb), _) => (&[], 0),
        (None, Network::None | Network::Slirp { .. }) | (Some(SharingWord::Plan9), _) => (&args.mount, 0),
        (Some(SharingWord::Virtiofs), _) => (&[], args.mount.len()),
    };
    let devices = (0..by_program).zip(SHOWN_DEVICES..).map(|(number, fd)| SharedDevice { tag: tag(number), fd });
    let shares = by_device.iter().enumerate().map(|(number, mount)| Share {
        tag: tag(number),
        path: mount.source.clone(),
        access: if mount.read_only { Access::Read } else { Access::Write },
    });
    let vm = Vm {
        architecture,
        accelerator: match args.accel {
            AcceleratorWord::Tcg => Accelerator::Tcg,
            AcceleratorWord::Kvm => Accelerator::Kvm,
        },
        memory: args.memory.map_or(DEFAULT_MEMORY, |bytes| bytes / (1024 * 1024)),
        cpus: cpus(args.cpus),
        kernel: part(&args.kernel, KERNEL)?,
        initrd: part(&args.initrd, INITRAMFS)?,
        append: String::new(),
        agent,
        control,
        network,
        root: root(args)?,
        shares: shares.collect(),
        devices: devices.collect(),
    };
    let mut words = vec![OsString::from(architecture.qemu())];
    words.extend(vm.arguments());
    Ok(words)
}

fn root(args: &VmArgsArgs) -> Result<Option<Root>, Refusal> {
    let Some(path) = &args.rootfs else { return Ok(None) };
    let source = root_source(path, path.clone());
    let source = source.map_err(|why| Refusal::setup(format!("--rootfs cannot be used: {}: {why}", path.display())))?;
    Ok(Some(Root { source, overlay: None }))
}

impl ArchitectureWord {
    fn architecture(self) -> Architecture {
        match self {
            ArchitectureWord::X86_64 => Architecture::X86_64,
            ArchitectureWord::Aarch64 => Architecture::Aarch64,
        }
    }
}

fn network(args: &VmArgsArgs) -> Result<Network, Refusal> {
    let [_, _, fd] = SHOWN_DESCRIPTORS;
    let has_rules = !(args.allow.is_empty() && args.deny.is_empty() && args.net_rule.is_empty());
    let reach = match (args.mode, args.engine) {
        (ModeOfVm::None, _) if !args.publish.is_empty() => {
            return Err(Refusal::setup(
                "--publish with --mode none: a guest without a network has no ports".to_owned(),
            ));
        }
        (ModeOfVm::None, _) => return Ok(Network::None),
        // What it reaches, and which ports lead in, is the gateway's to say.
        (ModeOfVm::MountsOnly | ModeOfVm::Full, EngineWord::Gateway) => {
            return Ok(Network::Tap { fd, vhost: None, mac: SHOWN_MAC, mtu: SHOWN_MTU });
        }
        (ModeOfVm::MountsOnly, EngineWord::Slirp) => Reach::Forwards,
        (ModeOfVm::Full, EngineWord::Slirp) => Reach::Everything,
    };
    if has_rules {
        let text = "--engine slirp has no place for rules: QEMU's own network forwards ports and otherwise lets everything \
                    through, or nothing; leave --allow, --deny and --net-rule out, or use --engine gateway";
        return Err(Refusal::setup(text.to_owned()));
    }
    let forwards = args.publish.iter().map(|(host, guest)| PortForward { host: *host, guest: *guest }).collect();
    Ok(Network::Slirp { reach, forwards, files: None })
}

fn print(words: &[OsString], json: bool) -> u8 {
    if json {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        return output::print_json(&serde_json::json!(words));
    }
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    output::print(&format!("{}\n", quoted.join(" ")))
}

/// A word as a POSIX shell takes it.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=:+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_what_a_shell_would_take_apart() {
        for (word, expected) in [
            ("-machine", "-machine"),
            ("user,id=net0", "user,id=net0"),
            ("console=ttyS0 quiet", "'console=ttyS0 quiet'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(OsStr::new(word)), expected);
        }
    }
}
