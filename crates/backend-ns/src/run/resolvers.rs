//! Follows the file that names the machine's resolvers.
//!
//! Such a file is written in place, replaced by another of the same name, or is a symbolic link into a folder where a
//! service does either (`/etc/resolv.conf` → `/run/systemd/resolve/stub-resolv.conf`). So the file itself is watched, and
//! every folder that a link on the way to it stands in. What exactly happened there does not matter: a moment after
//! anything did, all is read again, and watched anew.
//!
//! Nothing here keeps a sandbox from its network: a file that cannot be watched or read leaves the resolvers as they are.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::ResolverFile;

/// From the first sign of a change to the reading: who writes a file in place has emptied it first.
const MOMENT: Duration = Duration::from_millis(100);
/// Links on the way to the file; the kernel follows 40, and nobody makes more than two.
const MAX_LINKS: usize = 8;

#[derive(Debug)]
pub(crate) struct Resolvers {
    inotify: OwnedFd,
    file: ResolverFile,
    told: Vec<SocketAddr>,
    due: Option<Instant>,
}

impl Resolvers {
    /// Watches `file`, to be read at once. `None` where the kernel has no more watches for this user.
    pub(crate) fn follow(file: ResolverFile) -> Option<Resolvers> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        Some(Resolvers { inotify, file, told: Vec::new(), due: Some(Instant::now()) })
    }

    /// Readable when something happened around the file.
    pub(crate) fn news(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Something happened.
    pub(crate) fn handle_news(&mut self, now: Instant) {
        // Room for several events with names; what they say is not looked at.
        let mut events = [0; 4096];
        while rustix::io::read(&self.inotify, &mut events).is_ok_and(|len| len > 0) {}
        self.due.get_or_insert(now + MOMENT);
    }

    /// The resolvers, when they are to be read and are others than were told. A file that names none is on its way to
    /// name some.
    pub(crate) fn handle_time(&mut self, now: Instant) -> Option<Vec<SocketAddr>> {
        self.due.take_if(|due| *due <= now)?;
        // Watched before it is read: nothing falls between.
        self.watch();
        let servers = (self.file.read)(&self.file.path);
        (!servers.is_empty() && servers != self.told).then_some(servers)
    }

    /// The gateway has been told, or could not be and is to be told later.
    pub(crate) fn told(&mut self, servers: Result<Vec<SocketAddr>, Instant>) {
        match servers {
            Ok(servers) => self.told = servers,
            Err(now) => self.due = Some(now + MOMENT),
        }
    }

    fn watch(&self) {
        let beside = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE;
        let itself = WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let mut path = self.file.path.clone();
        for _ in 0..MAX_LINKS {
            let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
            let _ = inotify::add_watch(&self.inotify, &folder, beside);
            match std::fs::read_link(&path) {
                Ok(target) => path = folder.join(target),
                Err(_) => break,
            }
        }
        let _ = inotify::add_watch(&self.inotify, &self.file.path, itself);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// The numbers in a file, as ports.
    fn read(path: &Path) -> Vec<SocketAddr> {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|word| Some(([127, 0, 0, 1], word.parse().ok()?).into())).collect()
    }

    /// Waits for news and takes what there is to be told.
    fn next(resolvers: &mut Resolvers) -> Vec<u16> {
        loop {
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(resolvers.news(), rustix::event::PollFlags::IN)];
            crate::wire::poll(&mut fds, Some(Duration::from_secs(10))).unwrap();
            assert!(!fds[0].revents().is_empty(), "nothing was noticed");
            let now = Instant::now();
            resolvers.handle_news(now);
            if let Some(servers) = resolvers.handle_time(now + MOMENT) {
                resolvers.told(Ok(servers.clone()));
                return servers.iter().map(SocketAddr::port).collect();
            }
        }
    }

    #[test]
    fn every_way_of_changing_the_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("service")).unwrap();
        fs::write(path("service/stub"), "1").unwrap();
        symlink("service/stub", path("resolv.conf")).unwrap();
        let file = ResolverFile { path: path("resolv.conf"), read };
        let mut resolvers = Resolvers::follow(file).unwrap();
        let first = resolvers.handle_time(Instant::now()).unwrap();
        assert_eq!(first.len(), 1);
        resolvers.told(Ok(first));
        // Written in place, where the link leads.
        fs::write(path("service/stub"), "2").unwrap();
        assert_eq!(next(&mut resolvers), [2]);
        // Replaced there, twice: the second time the file is not the one that was there first.
        for number in [3, 4] {
            fs::write(path("new"), number.to_string()).unwrap();
            fs::rename(path("new"), path("service/stub")).unwrap();
            assert_eq!(next(&mut resolvers), [number]);
        }
        // The link itself replaced by a file, which is then written to.
        fs::write(path("new"), "5 6").unwrap();
        fs::rename(path("new"), path("resolv.conf")).unwrap();
        assert_eq!(next(&mut resolvers), [5, 6]);
        fs::write(path("resolv.conf"), "7").unwrap();
        assert_eq!(next(&mut resolvers), [7]);
    }

    #[test]
    fn nothing_is_told_of_a_file_that_says_nothing_or_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        fs::write(&path, "1").unwrap();
        let mut resolvers = Resolvers::follow(ResolverFile { path: path.clone(), read }).unwrap();
        let now = Instant::now();
        let servers = resolvers.handle_time(now).unwrap();
        // The gateway had no room: it is told a moment later.
        resolvers.told(Err(now));
        assert_eq!(resolvers.handle_time(now), None);
        assert_eq!(resolvers.handle_time(now + MOMENT), Some(servers.clone()));
        resolvers.told(Ok(servers));
        for text in ["", "1", "nonsense"] {
            fs::write(&path, text).unwrap();
            resolvers.handle_news(now);
            assert_eq!(resolvers.handle_time(now + MOMENT), None);
        }
        fs::remove_file(&path).unwrap();
        resolvers.handle_news(now);
        assert_eq!(resolvers.handle_time(now + MOMENT), None);
        assert_eq!(resolvers.deadline(), None);
    }
}
