//! `run --engine slirp`: what of a run's flags QEMU's own network has a place for.

use cofferdam_control::vm::{PortForward, Reach};
use cofferdam_control::{Engine, Slirp};
use cofferdam_policy::file::FlagItem;

use crate::args::{BackendWord, EngineWord, ModeOfVm, SharingWord};
use crate::refusal::Refusal;
use crate::units;

/// What was said of the engine, and what it depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen {
    pub engine: EngineWord,
    pub mode: Option<ModeOfVm>,
    pub backend: BackendWord,
    pub mount_via: Option<SharingWord>,
}

impl Chosen {
    /// For what has the gateway and no other engine.
    ///
    /// # Errors
    /// What was asked for.
    pub(crate) fn no_other(self) -> Result<(), Refusal> {
        let refused = |text: &str| Err(Refusal::setup(text.to_owned()));
        match (self.engine, self.mode) {
            (EngineWord::Gateway, None) => Ok(()),
            (EngineWord::Gateway, Some(_)) => {
                refused("--mode is for --engine slirp: with a gateway --no-net, --net and --allow say what is reached")
            }
            (EngineWord::Slirp, _) => refused("--engine slirp is for runs that end: leave --detach out"),
        }
    }

    /// The engine that was asked for.
    ///
    /// # Errors
    /// What of the flags it has no place for.
    pub(crate) fn engine(self, items: &[FlagItem]) -> Result<Engine, Refusal> {
        let refused = |text: &str| Err(Refusal::setup(text.to_owned()));
        if self.engine == EngineWord::Gateway {
            return self.no_other().map(|()| Engine::Gateway);
        }
        if self.backend != BackendWord::Vm {
            return refused("--engine slirp is the network of a virtual machine: use it with --backend vm");
        }
        if self.mount_via.is_some() {
            return refused("--engine slirp shares no directories with its guests: leave --mount-via out");
        }
        let mut forwards = Vec::new();
        for item in items {
            let FlagItem::Publish(text) = item else {
                return refused(
                    "--engine slirp has no place for rules, resolvers and limits: QEMU's own network forwards ports and otherwise \
                     lets everything through, or nothing; choose with --mode, and leave the network's other flags out, or use \
                     --engine gateway",
                );
            };
            let (host, guest) = units::port_pair(text).map_err(|why| {
                Refusal::setup(format!("--publish {text}: --engine slirp forwards TCP ports of 127.0.0.1: {why}"))
            })?;
            forwards.push(PortForward { host, guest });
        }
        let reach = match self.mode {
            Some(ModeOfVm::None) => None,
            Some(ModeOfVm::MountsOnly) | None => Some(Reach::Forwards),
            Some(ModeOfVm::Full) => Some(Reach::Everything),
        };
        Ok(Engine::Slirp(Slirp { reach, forwards }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLIRP: Chosen = Chosen { engine: EngineWord::Slirp, mode: None, backend: BackendWord::Vm, mount_via: None };

    fn refusal(chosen: Chosen, items: &[FlagItem]) -> String {
        chosen.engine(items).unwrap_err().text
    }

    #[test]
    fn only_ports_have_a_place() {
        let ports = [FlagItem::Publish("8080:80".to_owned())];
        let forwards = vec![PortForward { host: 8080, guest: 80 }];
        for (mode, reach) in [
            (None, Some(Reach::Forwards)),
            (Some(ModeOfVm::MountsOnly), Some(Reach::Forwards)),
            (Some(ModeOfVm::Full), Some(Reach::Everything)),
            (Some(ModeOfVm::None), None),
        ] {
            let engine = Chosen { mode, ..SLIRP }.engine(&ports).unwrap();
            assert_eq!(engine, Engine::Slirp(Slirp { reach, forwards: forwards.clone() }));
        }
        for item in [FlagItem::NoNet, FlagItem::Allow("example.org".to_owned()), FlagItem::MaxConnections(3)] {
            assert!(refusal(SLIRP, &[item]).contains("no place for rules"));
        }
        for text in ["0.0.0.0:80:80", "53:53/udp", "8000-8010:8000-8010", "[::1]:80:80", "0:80"] {
            assert!(refusal(SLIRP, &[FlagItem::Publish(text.to_owned())]).contains("HOST:GUEST"), "{text}");
        }
    }

    #[test]
    fn it_is_for_virtual_machines_and_nothing_else_chooses_it() {
        let gateway = Chosen { engine: EngineWord::Gateway, ..SLIRP };
        assert_eq!(gateway.engine(&[FlagItem::NoNet]).unwrap(), Engine::Gateway);
        assert!(refusal(Chosen { mode: Some(ModeOfVm::Full), ..gateway }, &[]).contains("--engine slirp"));
        assert!(refusal(Chosen { backend: BackendWord::Namespace, ..SLIRP }, &[]).contains("--backend vm"));
        for mount_via in [Some(SharingWord::Smb), Some(SharingWord::Plan9)] {
            assert_eq!(Chosen { mount_via, ..gateway }.engine(&[]).unwrap(), Engine::Gateway);
            assert!(refusal(Chosen { mount_via, ..SLIRP }, &[]).contains("leave --mount-via out"));
        }
        assert!(SLIRP.no_other().unwrap_err().text.contains("--detach"));
    }
}
