//! Things made once and kept in the user's cache folder: `<cache>/<name>/<key>/`.
//!
//! An entry counts only once its marker file is there, and only the holder of its lock makes it. So a run that
//! was killed half-way leaves nothing that a later one would trust, and two runs do not collide. (Making it
//! elsewhere and renaming would do for programs, but a Python environment knows its own path.)

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::failure::{Doing, Outcome};
use crate::repository;
use crate::session::Session;

const MARKER: &str = ".complete";
/// How many entries of one name are kept.
const KEPT: usize = 2;

/// The entry's folder, made by `make` if it is not there yet.
pub fn ensure(
    session: &Session,
    name: &str,
    key: &str,
    make: impl FnOnce(&Path) -> Outcome<()>,
) -> Outcome<PathBuf> {
    let parent = repository::cache_folder()?.join(name);
    let folder = parent.join(key);
    if folder.join(MARKER).exists() {
        mark_used(&folder)?;
        return Ok(folder);
    }
    std::fs::create_dir_all(&parent).doing(format!("make the folder {}", parent.display()))?;
    let _lock = lock(session, name, &parent.join(format!("{key}.lock")))?;
    if folder.join(MARKER).exists() {
        return Ok(folder);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder).doing(format!("remove the unfinished {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).doing(format!("make the folder {}", folder.display()))?;
    make(&folder)?;
    mark_used(&folder)?;
    prune(&parent, &folder);
    Ok(folder)
}

/// Waits for the lock; it goes when the file is closed, so a killed run leaves none behind.
fn lock(session: &Session, name: &str, path: &Path) -> Outcome<File> {
    let file = File::create(path).doing(format!("write {}", path.display()))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("    {name}: waiting for another run that is making it");
                }
                session.check()?;
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).doing(format!("lock {}", path.display()));
            }
        }
    }
}

/// Says that the folder is complete and was used just now.
pub fn mark_used(folder: &Path) -> Outcome<()> {
    let marker = folder.join(MARKER);
    let doing = || format!("write {}", marker.display());
    let file = File::options()
        .create(true)
        .append(true)
        .open(&marker)
        .doing(doing())?;
    file.set_modified(SystemTime::now()).doing(doing())
}

/// Removes all but the newest complete entries beside `current`. What cannot be removed stays: it only costs disk.
pub fn prune(parent: &Path, current: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    let mut others: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path != current)
        .filter_map(|path| Some((path.join(MARKER).metadata().ok()?.modified().ok()?, path)))
        .collect();
    others.sort_by(|left, right| right.cmp(left));
    for (_, path) in others.into_iter().skip(KEPT - 1) {
        // Without the marker first, an entry that is removed only in part is never trusted.
        let _ = std::fs::remove_file(path.join(MARKER));
        let _ = std::fs::remove_dir_all(&path);
        let _ = std::fs::remove_file(path.with_added_extension("lock"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_keeps_the_current_entry_and_the_newest_other() {
        let parent = std::env::temp_dir().join(format!("autounseal-prune-{}", std::process::id()));
        for (name, age) in [("current", 900), ("old", 800), ("older", 850), ("unfinished", 0)] {
            let folder = parent.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            if name != "unfinished" {
                mark_used(&folder).unwrap();
                let time = SystemTime::now() - Duration::from_secs(age);
                File::options()
                    .append(true)
                    .open(folder.join(MARKER))
                    .unwrap()
                    .set_modified(time)
                    .unwrap();
            }
        }
        prune(&parent, &parent.join("current"));
        let left = |name: &str| parent.join(name).exists();
        let seen = [left("current"), left("old"), left("older"), left("unfinished")];
        std::fs::remove_dir_all(&parent).unwrap();
        assert_eq!(seen, [true, true, false, true]);
    }
}
