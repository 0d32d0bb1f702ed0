//! `cofferdam vm`: what virtual machines are made from.

mod machine;
mod setup;

use crate::args::VmVerb;

pub(crate) use machine::{options, options_for, virtiofsd};

/// Does what was asked.
pub(crate) fn vm(verb: &VmVerb) -> u8 {
    match verb {
        VmVerb::Setup(args) => setup::setup(args),
        VmVerb::Args(args) => machine::show(args),
    }
}
