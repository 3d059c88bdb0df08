//! A folder that may be hostile (security rule S14): no link is followed, nothing but small regular files is read, and only
//! those whose name is asked for.

use std::{fs::File, io::Read, os::fd::OwnedFd, path::Path};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat};

use super::super::Failure;

/// Levels of folders.
const DEEPEST: usize = 8;

/// Entries altogether.
const MOST_ENTRIES: usize = 10_000;

/// Bytes of a file: AWS KMS's ciphertext has at most 6,144.
const MOST_BYTES: u64 = 16 * 1024;

/// A file that was asked for: its path below the folder with `/` between, and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where.
    pub(super) path: String,
    /// What.
    pub(super) bytes: Vec<u8>,
}

/// Reads the files of a folder, at any depth, that are `wanted` by their path. Sorted by path.
pub(super) fn read(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<Found>, Failure> {
    let shown = folder.display();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(CWD, folder, flags, Mode::empty())
        .map_err(|error| Failure::Misuse(format!("cannot read the folder {shown}: {error}")))?;
    let mut found = Vec::new();
    let mut entries = 0;
    let mut folders = vec![(top, String::new(), 0)];
    while let Some((folder, path, depth)) = folders.pop() {
        let failed = |error| Failure::No(format!("cannot read {shown}/{path}: {error}"));
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            entries += 1;
            if entries > MOST_ENTRIES {
                return Err(Failure::No(format!(
                    "{shown} holds more than {MOST_ENTRIES} entries; give a folder with nothing but the bucket's objects"
                )));
            }
            let below = format!("{path}{name}");
            let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth < DEEPEST => {
                    let flags = flags | OFlags::NOFOLLOW;
                    let inner = openat(&folder, name, flags, Mode::empty()).map_err(failed)?;
                    folders.push((inner, format!("{below}/"), depth + 1));
                }
                FileType::Directory => {
                    return Err(Failure::No(format!(
                        "{shown}/{below} lies too deep; give the folder that holds the bucket's objects"
                    )));
                }
                FileType::RegularFile if wanted(&below) => {
                    let bytes = content(&folder, name)
                        .map_err(|why| Failure::No(format!("{shown}/{below}: {why}")))?;
                    found.push(Found { path: below, bytes });
                }
                FileType::Symlink if wanted(&below) => {
                    return Err(Failure::No(format!(
                        "{shown}/{below} is a symbolic link, and none is followed; put the file itself there"
                    )));
                }
                _ => {}
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn content(folder: &OwnedFd, name: &str) -> Result<Vec<u8>, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        openat(folder, name, flags, Mode::empty()).map_err(|error| format!("cannot be read: {error}"))?;
    // What was a regular file a moment ago may be another thing now.
    let stat = fstat(&file).map_err(|error| format!("cannot be read: {error}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    File::from(file)
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(format!(
            "it is longer than {MOST_BYTES} bytes, which no KMS's ciphertext is"
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{create_dir, create_dir_all, write},
        os::unix::fs::symlink,
        path::PathBuf,
    };

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("autounseal-folder-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            create_dir(&path).unwrap();
            Self(path)
        }

        fn read(&self) -> Result<Vec<String>, Failure> {
            let found = read(&self.0, |path| path.ends_with("wanted"))?;
            Ok(found.into_iter().map(|found| found.path).collect())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_found_at_any_depth_and_others_are_not_read() {
        let scratch = Scratch::new("deep");
        create_dir_all(scratch.0.join("b/c")).unwrap();
        for file in ["wanted", "b/c/a-wanted", "b/other"] {
            write(scratch.0.join(file), "x").unwrap();
        }
        assert_eq!(scratch.read().unwrap(), ["b/c/a-wanted", "wanted"]);
        assert!(read(&scratch.0.join("none"), |_| true).is_err());
        assert!(read(&scratch.0.join("wanted"), |_| true).is_err());
    }

    #[test]
    fn no_link_is_followed_to_a_file_or_a_folder() {
        let scratch = Scratch::new("links");
        let elsewhere = Scratch::new("elsewhere");
        write(elsewhere.0.join("wanted"), "secret").unwrap();
        symlink(&elsewhere.0, scratch.0.join("folder")).unwrap();
        assert!(scratch.read().unwrap().is_empty());
        symlink(elsewhere.0.join("wanted"), scratch.0.join("wanted")).unwrap();
        let Err(Failure::No(message)) = scratch.read() else {
            panic!("a link was followed");
        };
        assert!(message.contains("symbolic link"), "{message}");
    }

    #[test]
    fn what_is_too_large_too_deep_or_no_file_is_not_read() {
        let large = Scratch::new("large");
        write(large.0.join("wanted"), vec![0; 16 * 1024 + 1]).unwrap();
        assert!(large.read().is_err());
        let deep = Scratch::new("too-deep");
        create_dir_all(deep.0.join("a/b/c/d/e/f/g/h/i")).unwrap();
        assert!(deep.read().is_err());
        let folder = Scratch::new("folder");
        create_dir(folder.0.join("wanted")).unwrap();
        assert!(folder.read().unwrap().is_empty());
    }
}
