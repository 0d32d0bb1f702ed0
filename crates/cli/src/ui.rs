//! `cofferdam ui`: the page that shows what sandboxes do.

use cofferdam_ui::{Config, Ui};

use crate::args::UiArgs;
use crate::output;
use crate::refusal::{EXIT_FAILED, Refusal};
use crate::state;

pub(crate) fn ui(args: &UiArgs) -> u8 {
    let state = match state::directory() {
        Ok(state) => state,
        Err(refusal) => return refusal.with_status(EXIT_FAILED).tell(false),
    };
    let ui = match Ui::bind(Config { state, port: args.port }) {
        Ok(ui) => ui,
        Err(error) => return Refusal::setup(output::chain(&error)).with_status(EXIT_FAILED).tell(false),
    };
    let status = output::print(&format!("{}\n", ui.link()));
    if status != 0 {
        return status;
    }
    output::say("open this link in a browser on this machine: it works once. Ctrl-C ends it");
    match ui.serve() {
        Ok(never) => match never {},
        Err(error) => output::fail(&output::chain(&error), EXIT_FAILED),
    }
}
