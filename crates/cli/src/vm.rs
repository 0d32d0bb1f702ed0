//! `cofferdam vm`: what virtual machines are made from.

mod setup;

use crate::args::VmVerb;

/// Does what was asked.
pub(crate) fn vm(verb: &VmVerb) -> u8 {
    match verb {
        VmVerb::Setup(args) => setup::setup(args),
    }
}
