//! What to do when the kernel refuses something. Read after the refusal: the operation itself is the probe.

use std::io;

use rustix::io::Errno;

/// The remedy for a user namespace that could not be made or has no power, or an empty text.
pub(crate) fn user_namespace(error: &io::Error) -> String {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw_os_error) else { return String::new() };
    if !matches!(errno, Errno::PERM | Errno::ACCESS | Errno::NOSPC) {
        return String::new();
    }
    let value = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    if value("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" && errno != Errno::NOSPC {
        return "; AppArmor keeps programs without a profile from using user namespaces: run `sudo sysctl \
                kernel.apparmor_restrict_unprivileged_userns=0`, or give cofferdam a profile with `userns,`"
            .to_owned();
    }
    if value("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        return "; user namespaces are for root alone here: run `sudo sysctl kernel.unprivileged_userns_clone=1`"
            .to_owned();
    }
    if errno == Errno::NOSPC {
        return "; the limit of user namespaces is reached: run `sudo sysctl user.max_user_namespaces=15000`"
            .to_owned();
    }
    if errno == Errno::PERM {
        return "; a container or its seccomp filter forbids user namespaces here: start the container with less \
                restriction (docker: --security-opt seccomp=unconfined)"
            .to_owned();
    }
    String::new()
}

/// The remedy for `/dev/net/tun`, or an empty text.
pub(crate) fn tun(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => {
            "; run `sudo chmod 0666 /dev/net/tun`, as most distributions ship it".to_owned()
        }
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            "; run `sudo modprobe tun`, or give the container the device (docker: --device /dev/net/tun)".to_owned()
        }
        // What a container engine makes of a bind mount whose source is not there.
        Some(Errno::ISDIR) => {
            "; a directory is there: remove it and run `sudo mknod -m 0666 /dev/net/tun c 10 200`, or give the container the \
             device (docker: --device /dev/net/tun)"
                .to_owned()
        }
        _ => String::new(),
    }
}
