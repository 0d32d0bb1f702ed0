use std::fs;
use std::path::{Path, PathBuf};

/// The processes of one run, found by a word that is on their command line and on nobody else's.
///
/// Cofferdam's own processes keep the command line that they were started with, and the program inside has the word too.
#[derive(Debug)]
pub struct Marked {
    word: String,
    cofferdam: PathBuf,
}

/// One process at the moment it was looked at.
#[derive(Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// The arguments, separated by spaces.
    pub command: String,
    /// Whether it is one of Cofferdam's, not the program inside nor what the test started around it.
    pub is_ours: bool,
}

impl Marked {
    pub(crate) fn new(word: String, cofferdam: &Path) -> Marked {
        Marked { word, cofferdam: cofferdam.to_owned() }
    }

    /// The word: a number that `sleep` takes for a long time.
    #[must_use]
    pub fn word(&self) -> &str {
        &self.word
    }

    /// Those that are there.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| self.look(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// The resident memory of Cofferdam's own processes, in KiB: of the largest one.
    #[must_use]
    pub fn largest_resident_kib(&self) -> u64 {
        self.processes()
            .iter()
            .filter(|process| process.is_ours)
            .map(|process| resident_kib(process.pid))
            .max()
            .unwrap_or(0)
    }

    fn look(&self, pid: u32) -> Option<Process> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        if !words.iter().any(|word| word.contains(&self.word)) {
            return None;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the state and the parent follow the last one.
        let (_, rest) = stat.rsplit_once(')')?;
        let parent = rest.split_whitespace().nth(1)?.parse().ok()?;
        let is_ours = words.first().is_some_and(|program| Path::new(program) == self.cofferdam);
        Some(Process { pid, parent, command: words.join(" "), is_ours })
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
