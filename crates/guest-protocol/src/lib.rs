//! What the host and the agent in a virtual machine say to each other, over a channel that carries bytes in order.
//!
//! **Frames.** Numbers are in network byte order.
//!
//! | Bytes | What |
//! |---|---|
//! | 4 | length of what follows |
//! | 1 | kind of message |
//! | the rest | what the kind has; texts and lists with their length in four bytes before them |
//!
//! **Greeting.** The agent speaks first, as soon as it serves: a word that says which protocol this is, its version, and the token
//! of this boot. The host answers with the same, and asks for nothing before it has seen the right token. Neither side answers a
//! greeting that is wrong: the channel is of no use then.
//!
//! **Calls.** The host asks for one thing with one message, under an id of its choice that it never uses again. Each call ends with
//! exactly one of `Exited`, `Done` and `Failed`.
//!
//! | Call | Streams | The guest says | Ends with |
//! |---|---|---|---|
//! | `Exec` | 0 in, 1 and 2 out; with a terminal 1 alone | `Started`; `Full`, once, when the disk was full meanwhile | `Exited` |
//! | `Put` | 0 in | `Started` | `Done`, when the file is in its place |
//! | `Get` | 1 out | `Opened` | `Done` |
//! | `Mount`, `Unmount`, `Network`, `SetTime` | – | – | `Done` |
//! | `Shutdown` | – | – | the machine is off |
//!
//! A call that cannot be done is `Failed`, at any point before its end. `Kill` ends a call with everything that it started.
//!
//! **Flow control.** Each stream has a window: at its start [`WINDOW`] bytes may be on their way, and `Credit` says how many
//! more since. So a reader that is slow holds up its own stream, and what either side has to keep is bounded.
//!
//! **Trust.** The agent believes the host. The host believes nothing: [`Host`] holds every message to the state of its call, and
//! the first that does not fit ends the channel with one [`Violation`]. Limits: [`MAX_CALLS`] calls at a time, two windows of
//! output for each, messages of [`MAX_TO_HOST`] bytes, and [`MAX_UNREAD`] that the agent has not read.

mod decoder;
mod host;
mod message;
mod token;
mod window;
mod wire;

pub use decoder::{Decoder, Violation};
pub use host::{CallError, Event, Host};
pub use message::{
    CallId, Exec, Failure, FailureKind, Leftover, Message, Mount, MountKind, Neighbour, Network, Put, Route, Shortage,
    Size, Status, Stream, ToGuest, ToHost,
};
pub use token::Token;
pub use window::{Grant, Window};

/// The version of all this. The two sides come from the same release, or one is told that they do not.
pub const VERSION: u16 = 2;

/// The name of the virtio-serial port under which the agent looks for the host.
pub const PORT: &str = "cofferdam.agent";

/// The bytes of a stream that may be on their way without having been asked for anew.
pub const WINDOW: u32 = 256 << 10;

/// The most bytes of a stream in one message.
pub const MAX_DATA: usize = 32 << 10;

/// The longest frame to the guest, without its length: an argument list and an environment fit.
pub const MAX_TO_GUEST: usize = 1 << 20;

/// The longest frame to the host, without its length.
pub const MAX_TO_HOST: usize = MAX_DATA + 64;

/// The most bytes that may wait for an agent that says something itself. One that reads has less: an argument list is asked for when
/// the one before is gone, and input when there is room. What one that does not read has coming for its own output would never end.
pub const MAX_UNREAD: usize = 4 * MAX_TO_GUEST;

/// The most calls at a time.
pub const MAX_CALLS: usize = 64;
