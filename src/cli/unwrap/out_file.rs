//! The file that a key is written into.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::cli::Failure;

/// A new file that only its owner may read, and that goes away again unless it is kept.
#[derive(Debug)]
pub(super) struct OutFile<'p> {
    path: &'p Path,
    file: File,
    kept: bool,
}

impl<'p> OutFile<'p> {
    pub(super) fn create(path: &'p Path) -> Result<Self, Failure> {
        // O_CREAT with O_EXCL: an existing file is never written, and a symbolic link is never followed (POSIX open()).
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| {
                Failure::Misuse(match error.kind() {
                    io::ErrorKind::AlreadyExists => format!(
                        "{} exists and is not overwritten; name another file",
                        path.display()
                    ),
                    _ => format!("cannot create {}: {error}", path.display()),
                })
            })?;
        Ok(Self {
            path,
            file,
            kept: false,
        })
    }

    pub(super) fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_all()?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for OutFile<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // An empty or half-written file would be taken for the key.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, path::PathBuf};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("autounseal-out-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn the_file_is_new_private_and_complete() {
        let path = scratch("new");
        OutFile::create(&path).unwrap().keep(b"key").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"key");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(OutFile::create(&path), Err(Failure::Misuse(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"key", "an existing file stays");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_link_is_never_followed_and_a_failure_leaves_nothing() {
        let (link, aim) = (scratch("link"), scratch("aim"));
        std::os::unix::fs::symlink(&aim, &link).unwrap();
        assert!(matches!(OutFile::create(&link), Err(Failure::Misuse(_))));
        assert!(!aim.exists());
        std::fs::remove_file(&link).unwrap();
        drop(OutFile::create(&aim).unwrap());
        assert!(!aim.exists());
    }
}
