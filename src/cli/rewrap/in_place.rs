//! A file that is replaced by its next version, whole or not at all.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, io::Errno};

use crate::cli::{Failure, manifest};

/// A regular file as it was read.
#[derive(Debug)]
pub(super) struct InPlace {
    path: PathBuf,
    metadata: Metadata,
    /// What it holds.
    pub(super) text: String,
}

impl InPlace {
    /// Reads it. A symbolic link is not followed: the rename would put a file in its place.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        // Without O_NONBLOCK a pipe would be waited for.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags).unwrap_or_default())
            .open(path)
            .map_err(|error| {
                Failure::Misuse(if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
                    format!(
                        "{shown} is a symbolic link, which --in-place does not follow; name the file itself"
                    )
                } else {
                    format!("cannot read {shown}: {error}")
                })
            })?;
        let metadata = file
            .metadata()
            .map_err(|error| Failure::Misuse(format!("cannot read {shown}: {error}")))?;
        if !metadata.is_file() {
            return Err(Failure::Misuse(format!(
                "{shown} is no regular file, so it cannot be changed in place"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            metadata,
            text: manifest::text_of(file, path)?,
        })
    }

    /// Puts the new text in its place.
    ///
    /// # Errors
    /// The file was changed meanwhile, or cannot be written; it is as it was then.
    pub(super) fn replace(&self, text: &str) -> Result<(), Failure> {
        let shown = self.path.display();
        let name = self
            .path
            .file_name()
            .ok_or_else(|| Failure::Misuse(format!("{shown} is no file")))?;
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(format!(".autounseal-{}", std::process::id()));
        let beside = self.path.with_file_name(beside);
        let cannot = |error: io::Error| Failure::No(format!("cannot write {}: {error}", beside.display()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)
            .map_err(cannot)?;
        let done = self.fill(&file, text).map_err(cannot).and_then(|()| {
            if self.is_as_read() {
                fs::rename(&beside, &self.path)
                    .map_err(|error| Failure::No(format!("cannot replace {shown}: {error}")))
            } else {
                Err(Failure::No(format!(
                    "{shown} was changed by somebody else meanwhile, so it is left as it is; try again"
                )))
            }
        });
        if done.is_err() {
            let _ = fs::remove_file(&beside);
        }
        done
    }

    fn fill(&self, mut file: &File, text: &str) -> io::Result<()> {
        file.write_all(text.as_bytes())?;
        file.set_permissions(self.metadata.permissions())?;
        file.sync_all()
    }

    fn is_as_read(&self) -> bool {
        let facts = |of: &Metadata| (of.dev(), of.ino(), of.len(), of.mtime(), of.mtime_nsec());
        fs::symlink_metadata(&self.path).is_ok_and(|now| facts(&now) == facts(&self.metadata))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::cli::manifest::tests::Scratch;

    fn left_behind(of: &Path) -> bool {
        let name = of.file_name().unwrap().to_str().unwrap();
        let folder = fs::read_dir(of.parent().unwrap()).unwrap();
        folder.filter_map(Result::ok).any(|entry| {
            entry
                .file_name()
                .to_str()
                .unwrap()
                .starts_with(&format!(".{name}."))
        })
    }

    #[test]
    fn the_file_is_replaced_and_keeps_its_mode() {
        let file = Scratch::new("in-place.yaml", "old");
        fs::set_permissions(&file.0, fs::Permissions::from_mode(0o640)).unwrap();
        let opened = InPlace::open(&file.0).unwrap();
        assert_eq!(opened.text, "old");
        opened.replace("new").unwrap();
        assert_eq!(fs::read_to_string(&file.0).unwrap(), "new");
        assert_eq!(
            fs::metadata(&file.0).unwrap().permissions().mode() & 0o7777,
            0o640
        );
        assert!(!left_behind(&file.0));
    }

    #[test]
    fn a_link_is_not_followed_and_a_changed_file_is_left() {
        let file = Scratch::new("in-place-aim.yaml", "old");
        let link = Scratch(
            file.0
                .with_file_name(format!("autounseal-{}-in-place-link", std::process::id())),
        );
        symlink(&file.0, &link.0).unwrap();
        let Err(Failure::Misuse(message)) = InPlace::open(&link.0) else {
            panic!("followed")
        };
        assert!(message.contains("symbolic link"), "{message}");
        assert!(InPlace::open(file.0.parent().unwrap()).is_err());
        let opened = InPlace::open(&file.0).unwrap();
        fs::write(&file.0, "other").unwrap();
        assert!(opened.replace("new").is_err());
        assert_eq!(fs::read_to_string(&file.0).unwrap(), "other");
        assert!(!left_behind(&file.0));
    }
}
