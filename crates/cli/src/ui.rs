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
    let links: String = ui.links().iter().map(|link| format!("{link}\n")).collect();
    let status = output::print(&links);
    if status != 0 {
        return status;
    }
    output::say(
        "open one of these links in a browser on this machine: the first that is opened makes both void. Ctrl-C ends it",
    );
    match ui.serve() {
        Ok(never) => match never {},
        Err(error) => output::fail(&output::chain(&error), EXIT_FAILED),
    }
}
