//! `ports add`, `ports rm` and `ports ls`.

use cofferdam_control::named;
use cofferdam_model::PublishedPort;

use super::open;
use crate::args::{PortsChangeArgs, PortsLsArgs, PortsVerb};
use crate::output;
use crate::refusal::{EXIT_FAILED, Refusal};

pub(crate) fn ports(verb: PortsVerb) -> u8 {
    let (listed, json) = match verb {
        PortsVerb::Add(PortsChangeArgs { name, ports, json }) => {
            (open(&name).and_then(|entry| named::publish(&entry, ports).map_err(|error| Refusal::from(&error))), json)
        }
        PortsVerb::Rm(PortsChangeArgs { name, ports, json }) => {
            (open(&name).and_then(|entry| named::withdraw(&entry, ports).map_err(|error| Refusal::from(&error))), json)
        }
        PortsVerb::Ls(PortsLsArgs { name, json }) => {
            (open(&name).and_then(|entry| named::ports(&entry).map_err(|error| Refusal::from(&error))), json)
        }
    };
    match listed {
        Ok(ports) if json => output::print_json(&serde_json::json!(ports)),
        Ok(ports) => output::print(&ports.iter().map(line).collect::<String>()),
        Err(refusal) => refusal.with_status(EXIT_FAILED).tell(json),
    }
}

/// A port as it is written on a command line.
fn line(port: &PublishedPort) -> String {
    format!("{port}\n")
}
