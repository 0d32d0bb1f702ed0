//! Sandboxes from asynchronous programs: run anything, let it reach exactly what you allow, see what it tried.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use cofferdam_client::{NetworkMode, Session};
//!
//! # async fn agent() -> Result<(), cofferdam_client::Error> {
//! let session = Session::builder("agent")
//!     .network_mode(NetworkMode::Allowlist)
//!     .network_allowlist(["@pypi"])
//!     .create()
//!     .await?;
//! session.run("pip").args(["install", "requests"]).output().await?;
//!
//! // The same files, and no network at all.
//! session.write("job.py", "import requests; print(requests.__version__)").await?;
//! let run = session.run("python3").arg("job.py").network_mode(NetworkMode::Blocked);
//! let output = run.timeout(Duration::from_secs(60)).output().await?;
//! println!("{:?} {}", output.status, output.stdout_text());
//! for denied in &output.denied {
//!     println!("tried {} {} times: {}", denied.target, denied.count, denied.rule);
//! }
//! session.remove().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Every operation executes the program `cofferdam` and speaks JSON with it: making a sandbox forks, which a program with threads
//! must not do. A runtime of tokio has to be there, with I/O enabled. The program is found by [`SandboxBuilder::program`], the variable `COFFERDAM_PROGRAM`, or `PATH`, in that order.
//!
//! | Begin with | To |
//! |---|---|
//! | [`Sandbox::builder`], [`Session::builder`] | make a sandbox, with the public internet or with nothing |
//! | [`Sandbox::open`], [`Sandbox::list`] | find those there are |
//! | [`Sandbox::run`] | run a program in it: [`Run::output`], [`Run::status`], [`Run::spawn`] |
//! | [`Sandbox::vm`] | make a virtual machine for a few commands; [`vm`] has more |
//! | [`Network`] | say what may be reached; [`policy`] has rules |
//! | [`Sandbox::put`], [`get`](Sandbox::get), [`write`](Sandbox::write), [`read`](Sandbox::read) | copy files |
//!
//! # What is dropped
//!
//! A [`Running`] that is dropped is ended, and so is the run behind a future of [`Run::output`] or [`Run::status`]. A [`Sandbox`]
//! is a name: dropping it changes nothing, and [`Sandbox::remove`] removes it. No future leaves a process of ours behind; that
//! of [`SandboxBuilder::create`] may leave the sandbox.

mod builder;
mod error;
mod files;
mod inspected;
pub mod lists;
mod logs;
mod network;
mod program;
mod report;
mod run;
mod running;
mod sandbox;
mod streams;
pub mod vm;

pub use cofferdam_model as model;
pub use cofferdam_policy as policy;

pub use cofferdam_model::{NetworkMode, PublishedPort};

pub use builder::{SandboxBuilder, Session};
pub use error::Error;
pub use inspected::{Inspected, Mounted, RunInfo, State};
pub use logs::Logs;
pub use network::Network;
pub use report::{Denied, Finished, Output, Status, Totals};
pub use run::{Mode, Run};
pub use running::{Running, Signal};
pub use sandbox::Sandbox;

/// Whoever reads the guide should be able to use what is in it.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct Guide;
