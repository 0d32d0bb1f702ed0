//! Files into a sandbox and out of it.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use tar::{Archive, Builder, Header};

use crate::Error;
use crate::error::{Refusal, io_error};
use crate::program::{Said, words};
use crate::sandbox::Sandbox;

/// The largest file that [`Sandbox::read`] reads.
const LONGEST_FILE: usize = 64 << 20;

/// What an archive of one file has besides: headers of a long name, and the blocks that end it.
const AROUND: usize = 64 * 1024;

/// What a copy says on standard error.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    LeftOut {
        left_out: String,
    },
    Refused(Refusal),
    Notice {
        #[serde(rename = "notice")]
        _text: String,
    },
}

impl Sandbox {
    /// Copies a file or directory of this machine to a path in the sandbox, which has to run. Relative paths inside are relative to
    /// `/home/user`. Where a directory is at the destination, the copy comes into it; where nothing is, it gets that name. Returns
    /// what was left out: devices, FIFOs, sockets.
    ///
    /// # Errors
    /// When it cannot be copied; a part of it may have been.
    pub async fn put(&self, local: impl AsRef<Path>, inside: &str) -> Result<Vec<String>, Error> {
        self.copy(here(local.as_ref())?, self.place(inside)).await
    }

    /// Copies a file or directory of the sandbox to a path of this machine, as [`Sandbox::put`] does the other way. Links that lead
    /// out of the copy are left out as well.
    ///
    /// What comes out is a hostile program's: nobody has looked at it.
    ///
    /// # Errors
    /// When it cannot be copied; a part of it may have been.
    pub async fn get(&self, inside: &str, local: impl AsRef<Path>) -> Result<Vec<String>, Error> {
        self.copy(self.place(inside), here(local.as_ref())?).await
    }

    /// Writes a file in the sandbox, in a directory that is there. What had its name is replaced, and never written through.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn write(&self, inside: &str, content: impl AsRef<[u8]>) -> Result<(), Error> {
        let no_file = || Error::NotAFile { path: inside.to_owned() };
        let (directory, name) = inside.rsplit_once('/').map_or(("", inside), |(directory, name)| (directory, name));
        if name.is_empty() || name == "." || name == ".." {
            return Err(no_file());
        }
        let directory = if inside.starts_with('/') && directory.is_empty() { "/" } else { directory };
        let archive = archive(name, content.as_ref()).map_err(io_error("write an archive"))?;
        let mut words = words(["cp", "--json", "--", "-"]);
        words.push(self.place(directory));
        let said = self.program().say(&words, Some(archive), None).await?;
        left_out(&said).map(|_| ())
    }

    /// Reads a file of the sandbox, up to 64 MiB. A link leads where it leads inside.
    ///
    /// # Errors
    /// When it is not there, no file, or too large.
    pub async fn read(&self, inside: &str) -> Result<Vec<u8>, Error> {
        let mut words = words(["cp", "--json", "--"]);
        words.extend([self.place(inside), "-".into()]);
        let said = self.program().say(&words, None, Some(LONGEST_FILE + AROUND)).await?;
        left_out(&said)?;
        first_file(&said.stdout)
            .map_err(|error| said.unexpected(&error.to_string()))?
            .ok_or_else(|| Error::NotAFile { path: inside.to_owned() })
    }

    async fn copy(&self, from: OsString, to: OsString) -> Result<Vec<String>, Error> {
        let mut words = words(["cp", "--json", "--"]);
        words.extend([from, to]);
        left_out(&self.program().say(&words, None, None).await?)
    }

    /// A path inside, as `cp` has it.
    fn place(&self, inside: &str) -> OsString {
        format!("{}:{inside}", self.name()).into()
    }
}

/// A path of this machine that `cp` takes for nothing else.
fn here(path: &Path) -> Result<OsString, Error> {
    std::path::absolute(path).map(Into::into).map_err(io_error("find the current directory"))
}

/// What a copy has left out, or why it failed.
fn left_out(said: &Said) -> Result<Vec<String>, Error> {
    let mut left = Vec::new();
    for line in said.stderr.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Line::LeftOut { left_out }) => left.push(left_out),
            Ok(Line::Refused(refusal)) => return Err(refusal.into()),
            Ok(Line::Notice { .. }) => {}
            Err(_) => return Err(said.unexpected("")),
        }
    }
    // 1 says that something was left out, and that was told.
    if said.status == Some(0) || (said.status == Some(1) && !left.is_empty()) {
        Ok(left)
    } else {
        Err(said.unexpected(""))
    }
}

fn archive(name: &str, content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
    header.set_mtime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    let mut builder = Builder::new(Vec::with_capacity(content.len().saturating_add(AROUND)));
    builder.append_data(&mut header, name, content)?;
    builder.into_inner()
}

/// The content of an archive's first entry, if that is a file.
fn first_file(archive: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
    let mut archive = Archive::new(archive);
    let Some(entry) = archive.entries()?.next() else { return Ok(None) };
    let mut entry = entry?;
    if !entry.header().entry_type().is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_through_an_archive() {
        let long = "n".repeat(200);
        for name in ["a", long.as_str()] {
            for content in [&b""[..], b"content", &[7; 70_000]] {
                assert_eq!(first_file(&archive(name, content).unwrap()).unwrap().unwrap(), content);
            }
        }
        let mut directory = Builder::new(Vec::new());
        directory.append_dir("d", "/").unwrap();
        assert_eq!(first_file(&directory.into_inner().unwrap()).unwrap(), None);
        assert_eq!(first_file(b"").unwrap(), None);
        assert!(first_file(&[1; 600]).is_err());
    }
}
