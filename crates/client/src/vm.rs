//! A virtual machine in one sentence: made for a few commands, and gone when it is dropped.
//!
//! ```no_run
//! use cofferdam_client::Sandbox;
//! use cofferdam_client::vm::{INITRAMFS, NetworkMode};
//!
//! # async fn agent() -> Result<(), cofferdam_client::Error> {
//! let guest = Sandbox::vm(INITRAMFS)
//!     .network_mode(NetworkMode::MountsOnly)
//!     .port_forward(8080, 80)
//!     .mount("/src", "/mnt/src")
//!     .create()
//!     .await?;
//! let output = guest.execute("wc -l /mnt/src/*").await?;
//! println!("{:?}\n{}", output.status, output.stdout_text());
//! guest.close().await
//! # }
//! ```

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use cofferdam_model::{Action, PolicyConfig};

use crate::builder::SandboxBuilder;
use crate::network::wrong;
use crate::{Error, Output, Sandbox};

/// The image that is none: busybox in memory, which `cofferdam vm setup` has made.
pub const INITRAMFS: &str = "initramfs";

/// What a machine reaches, in a word. The wall around it is the same; these are words for policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// It has no network card.
    None,
    /// Nothing but what is mounted; ports that are forwarded lead in.
    #[default]
    MountsOnly,
    /// Everything, your own network included.
    Full,
}

/// A virtual machine before it is made. Made by [`Sandbox::vm`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `create`"]
pub struct GuestBuilder {
    builder: SandboxBuilder,
    mode: Option<NetworkMode>,
    forwards: Vec<(u16, u16)>,
}

impl Sandbox {
    /// A virtual machine with this root: a directory, an image of a disk, or [`INITRAMFS`]. It is removed when it is dropped.
    pub fn vm(image: impl Into<PathBuf>) -> GuestBuilder {
        let (builder, image) = (Sandbox::unnamed().virtual_machine(), image.into());
        let builder = if image.as_os_str() == INITRAMFS { builder } else { builder.rootfs(image) };
        GuestBuilder { builder, mode: None, forwards: Vec::new() }
    }
}

impl GuestBuilder {
    /// What it reaches; [`NetworkMode::MountsOnly`] without this, and without a network in [`GuestBuilder::adjust`].
    pub fn network_mode(mut self, mode: NetworkMode) -> GuestBuilder {
        self.mode = Some(mode);
        self
    }

    /// Has a TCP port of 127.0.0.1 lead to one of the guest's.
    pub fn port_forward(mut self, host: u16, guest: u16) -> GuestBuilder {
        self.forwards.push((host, guest));
        self
    }

    /// Shows a directory of this machine, writable.
    pub fn mount(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> GuestBuilder {
        self.builder = self.builder.mount(source, target);
        self
    }

    /// As [`GuestBuilder::mount`], read-only.
    pub fn mount_read_only(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> GuestBuilder {
        self.builder = self.builder.mount_read_only(source, target);
        self
    }

    /// Says anything else that there is to say of a sandbox.
    pub fn adjust(mut self, change: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> GuestBuilder {
        self.builder = change(self.builder);
        self
    }

    /// Makes it and starts it. That takes seconds where there is no KVM.
    ///
    /// Dropping the future ends the program that makes it. When it was made by then it stays, and [`Sandbox::list`] has it.
    ///
    /// # Errors
    /// When something that was asked for cannot be had; nothing is left behind then.
    pub async fn create(self) -> Result<Guest, Error> {
        Ok(Guest { sandbox: self.settled()?.create().await?, is_closed: false })
    }

    /// The sandbox that is asked for. What it reaches is said in one way.
    fn settled(self) -> Result<SandboxBuilder, Error> {
        let GuestBuilder { builder, mode, forwards } = self;
        let mode = match (mode, builder.says_network()) {
            (Some(_), true) => {
                return Err(wrong(
                    "network_mode",
                    "a mode and a network that `adjust` says are two ways to say one thing",
                    "say it in one way",
                ));
            }
            (None, true) => None,
            (mode, false) => Some(mode.unwrap_or_default()),
        };
        Ok(builder.network(|network| {
            let network = forwards.iter().fold(network, |network, (host, guest)| network.port(*host, *guest));
            network.adjust(move |config| match mode {
                None => {}
                Some(NetworkMode::None) => config.enabled = false,
                Some(NetworkMode::MountsOnly) => config.policy = everything(Action::Deny),
                Some(NetworkMode::Full) => config.policy = everything(Action::Allow),
            })
        }))
    }
}

/// A policy without rules, for what leaves; what comes in does so by ports that were forwarded.
fn everything(action: Action) -> PolicyConfig {
    PolicyConfig { default_egress: action, default_ingress: Action::Allow, ..PolicyConfig::default() }
}

/// A virtual machine that runs. Dropping it ends it, with everything in it.
///
/// The program that holds it may be killed before that: then it stays, as any [`Sandbox`] does.
#[derive(Debug)]
pub struct Guest {
    sandbox: Sandbox,
    is_closed: bool,
}

impl Guest {
    /// Runs a piece of shell to its end, and keeps what it writes. Dropping the future kills it, with everything that it has started.
    ///
    /// # Errors
    /// When it could not be started, or writes more than is kept.
    pub async fn execute(&self, command: &str) -> Result<Output, Error> {
        self.sandbox.run("sh").args(["-c", command]).output().await
    }

    /// As [`Guest::execute`], and after `timeout` it is killed, with everything that it has started.
    ///
    /// # Errors
    /// As [`Guest::execute`], and when the time was up.
    pub async fn execute_within(&self, command: &str, timeout: Duration) -> Result<Output, Error> {
        self.sandbox.run("sh").args(["-c", command]).timeout(timeout).output().await
    }

    /// The same machine as a sandbox: for programs with streams, copies, ports and policies.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Ends it, and waits until nothing of it is left.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn close(mut self) -> Result<(), Error> {
        let closed = self.sandbox.remove().await;
        self.is_closed = closed.is_ok();
        closed
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.is_closed {
            return;
        }
        let mut remove = Command::new(self.sandbox.program().path());
        remove.args(self.sandbox.words(["rm", "--force"]));
        remove.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A destructor cannot wait in a runtime; a thread takes its end, and a process that ends before that leaves it to go on.
        if let Ok(mut child) = remove.spawn() {
            let _no_thread = std::thread::Builder::new().spawn(move || child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_model::NetworkConfig;

    use super::*;

    fn settled(fill: impl FnOnce(GuestBuilder) -> GuestBuilder) -> Result<NetworkConfig, Error> {
        fill(Sandbox::vm(INITRAMFS)).settled()?.resolved_network()
    }

    #[test]
    fn what_a_machine_reaches_is_said_in_one_way() {
        let own = PolicyConfig { default_ingress: Action::Deny, ..everything(Action::Allow) };
        let said = |guest: GuestBuilder| guest.adjust(|sandbox| sandbox.network(|network| network.policy(own.clone())));
        assert!(settled(|guest| said(guest.network_mode(NetworkMode::Full))).is_err());
        assert_eq!(settled(|guest| said(guest).port_forward(8080, 80)).unwrap().policy, own);
        assert_eq!(settled(|guest| guest).unwrap().policy, everything(Action::Deny));
        assert_eq!(settled(|guest| guest.network_mode(NetworkMode::Full)).unwrap().policy, everything(Action::Allow));
        assert!(!settled(|guest| guest.network_mode(NetworkMode::None)).unwrap().enabled);
    }
}
