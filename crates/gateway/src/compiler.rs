//! Compiles a policy that comes while a sandbox runs, beside the loop: ten thousand rules take longer than a packet may wait.
//!
//! One thread, started before the gateway seals itself, and sealed by itself in the same way before it reads anything. It
//! reads nothing but what the supervisor sends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

use cofferdam_model::{Classifier, NetworkConfig};
use cofferdam_names::Rebinding;
use cofferdam_policy::Policy;
use rustix::pipe::PipeFlags;

use crate::commands::MAX_SETTINGS;
use crate::seal::{self, Needs, SealError};

/// Policies that may wait to be compiled.
const QUEUE: usize = 4;

/// Enough for a parser that does not recurse deeply.
const STACK: usize = 1 << 20;

/// Settings as they arrived.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u32,
    pub(crate) file: OwnedFd,
    pub(crate) classifier: Classifier,
}

/// What has become of them.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) number: u32,
    pub(crate) result: Result<Box<Settings>, String>,
}

/// Settings that can take the place of others.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) network: NetworkConfig,
    pub(crate) policy: Arc<Policy>,
    pub(crate) rebinding: Rebinding,
}

/// The thread, seen from the loop.
#[derive(Debug)]
pub(crate) struct Compiler {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    /// Readable when something is done.
    bell: OwnedFd,
}

impl Compiler {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is no pipe or no thread to be had, or it could not be confined.
    pub(crate) fn start() -> Result<Compiler, CompilerError> {
        let (bell, ringer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|errno| CompilerError::Start { source: errno.into() })?;
        let (jobs, queue) = mpsc::sync_channel::<Job>(QUEUE);
        let (results, done) = mpsc::channel();
        let (sealed, is_sealed) = mpsc::channel();
        let work = move || {
            let seal = seal::seal(Needs::Nothing);
            let confined = seal.is_ok();
            let _waiting = sealed.send(seal.map(drop));
            // Ends when the loop does.
            while confined && let Ok(Job { number, file, classifier }) = queue.recv() {
                let result = compile(&file, classifier);
                if results.send(Done { number, result }).is_err() {
                    return;
                }
                // A full pipe has rung already.
                let _rung = rustix::io::write(&ringer, &[1]);
            }
        };
        let thread = std::thread::Builder::new().name("compile".to_owned()).stack_size(STACK);
        thread.spawn(work).map_err(|source| CompilerError::Start { source })?;
        match is_sealed.recv() {
            Ok(Ok(())) => Ok(Compiler { jobs, done, bell }),
            Ok(Err(source)) => Err(CompilerError::Seal { source }),
            Err(_) => Err(CompilerError::Start { source: io::ErrorKind::BrokenPipe.into() }),
        }
    }

    /// Has settings compiled; `false` when too many wait already.
    pub(crate) fn ask(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }

    /// The next that are done.
    pub(crate) fn take(&self) -> Option<Done> {
        while let Ok(1..) = rustix::io::read(&self.bell, &mut [0; 16]) {}
        self.done.try_recv().ok()
    }

    /// Readable when there is something to [`take`](Compiler::take).
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Why there is no thread.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompilerError {
    #[error("cannot start a thread")]
    Start { source: io::Error },
    #[error(transparent)]
    Seal { source: SealError },
}

fn compile(file: &OwnedFd, classifier: Classifier) -> Result<Box<Settings>, String> {
    let text = read(file).map_err(|error| format!("the settings cannot be read: {error}"))?;
    let network = cofferdam_policy::file::parse("settings.json", &text).map_err(|errors| errors.to_string())?;
    if !network.enabled {
        return Err("a sandbox that has a network cannot lose its interface; deny everything instead".to_owned());
    }
    let rebinding = Rebinding::of_network(&network, &classifier);
    let policy = Arc::new(Policy::of_network(&network, classifier).map_err(|error| error.to_string())?);
    Ok(Box::new(Settings { network, policy, rebinding }))
}

fn read(file: &OwnedFd) -> io::Result<String> {
    let mut text = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut buffer))? {
            0 => break,
            len => text.extend_from_slice(buffer.get(..len).unwrap_or_default()),
        }
        if text.len() > MAX_SETTINGS {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData.into())
}
