//! Opens the way to sockets of the host, before anything of a sandbox is made: one that cannot be used is found out while nothing
//! has started.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cofferdam_backend_ns::{ResolveError, resolve};
use cofferdam_gateway::{DoorError, SocketDoor};
use cofferdam_model::HostSocket;

use crate::named;

/// Why a socket of the host is not shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error("cannot share the host socket {socket}: {why}")]
    Resolve { socket: HostSocket, why: ResolveError },
    #[error(
        "cannot share the host socket {socket}: the sandbox can write to {root}, so a program in it could put another socket in its \
         place; have its server listen elsewhere"
    )]
    Writable { socket: HostSocket, root: PathBuf },
    #[error("cannot share the host socket {socket}: who reaches it controls a sandbox of this program")]
    Control { socket: HostSocket },
    #[error("cannot share the host socket {socket}: {why}")]
    Door { socket: HostSocket, why: DoorError },
}

/// Opens the way to every socket. `roots` are the directories that the sandbox can write to.
///
/// # Errors
/// The first that cannot be shared.
pub(crate) fn open(sockets: &[HostSocket], roots: &[PathBuf]) -> Result<Vec<Arc<SocketDoor>>, ShareError> {
    sockets.iter().map(|socket| open_one(socket, roots).map(Arc::new)).collect()
}

fn open_one(socket: &HostSocket, roots: &[PathBuf]) -> Result<SocketDoor, ShareError> {
    let path = Path::new(&socket.host);
    let socket = || socket.clone();
    let real = match resolve(path, roots) {
        Ok(real) => real,
        Err(ResolveError::Missing { .. }) => {
            return Err(ShareError::Door { socket: socket(), why: DoorError::Missing(path.to_owned()) });
        }
        Err(why @ ResolveError::Link { .. }) => return Err(ShareError::Resolve { socket: socket(), why }),
    };
    if let Some(root) = roots.iter().find(|root| real.starts_with(root)) {
        return Err(ShareError::Writable { socket: socket(), root: root.clone() });
    }
    // However the directory is reached: the check of paths does not see what is mounted where.
    if named::is_control_socket(&real) {
        return Err(ShareError::Control { socket: socket() });
    }
    SocketDoor::open(&real).map_err(|why| ShareError::Door { socket: socket(), why })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn refused(host: &Path, roots: &[PathBuf]) -> String {
        let socket = HostSocket { host: host.to_str().unwrap().to_owned(), guest: "/run/x".to_owned() };
        match open(&[socket], roots) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn only_what_the_user_can_mean_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        for name in ["project", "run", "state", "record"] {
            std::fs::create_dir(home.join(name)).unwrap();
        }
        let listen = |path: &str| UnixListener::bind(home.join(path)).unwrap();
        let _listeners = ["project/a", "run/a", "state/control", "record/control", "run/control"].map(listen);
        std::fs::write(home.join("state/sandbox.json"), "{}").unwrap();
        std::fs::write(home.join("record/run.json"), "{}").unwrap();
        symlink(home.join("run/a"), home.join("link")).unwrap();
        symlink(home.join("run/a"), home.join("project/link")).unwrap();
        symlink(home.join("project"), home.join("way")).unwrap();
        let roots = [home.join("project")];
        for (path, reason) in [
            ("run/a", ""),
            ("run/control", ""),
            ("link", ""),
            ("run/b", "there is no"),
            ("run", "is no socket"),
            ("project/a", "put another socket in its place"),
            ("way/a", "put another socket in its place"),
            ("project/link", "is a symbolic link"),
            ("state/control", "controls a sandbox"),
            ("record/control", "controls a sandbox"),
        ] {
            let error = refused(&home.join(path), &roots);
            assert_eq!((error.is_empty(), error.contains(reason)), (reason.is_empty(), true), "{path}: {error}");
        }
    }
}
