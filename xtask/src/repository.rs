//! Where things are: the repository, the user's cache folder, cargo's target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::cache;
use crate::failure::{Doing, Outcome};
use crate::process;
use crate::session::Session;

/// Beyond this size the shared target folder is cleaned; what one clone needs takes less than half.
const TARGET_LIMIT: u64 = 16 * 1024 * 1024 * 1024;

/// The repository's root folder.
pub fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// The user's cache folder for this project.
pub fn cache_folder() -> Outcome<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("auto-unseal-operator"))
        .ok_or_else(|| {
            "neither XDG_CACHE_HOME nor HOME is set. Set one: the tools are built into a folder below it."
                .into()
        })
}

/// The first 16 hex digits of a SHA-256 over all parts, each with its length in front.
pub fn checksum(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_string());
        hash.update(":");
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(8)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Reads a file of the repository whose content decides a key of the cache.
pub fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).doing(format!("read {}", path.display()))
}

/// A cargo command at the root, with the target folder that [`target_folder`] chose.
pub fn cargo(target: &Path) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    process::without_cargo_run(&mut command)
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target);
    if std::env::var_os("CI").is_some() && std::env::var_os("CARGO_INCREMENTAL").is_none() {
        // CI builds a clone once; what would speed up its second build only fills the disk.
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// Where cargo builds: `CARGO_TARGET_DIR` if set, else a folder of the user's cache that all clones built with
/// the same compiler share, so that a fresh clone does not compile the dependencies again. (Cargo.lock is no
/// part of its key: after a change of one dependency cargo compiles that one anew and keeps the others.)
pub fn target_folder(session: &Session) -> Outcome<PathBuf> {
    if let Some(set) = std::env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        return std::path::absolute(set).doing("read CARGO_TARGET_DIR");
    }
    let compiler = process::answer(Command::new("rustc").arg("-vV").current_dir(root()))
        .ok_or("`rustc -vV` failed. Install Rust with rustup.")?;
    let parent = cache_folder()?.join("target");
    let folder = parent.join(checksum(&[compiler.as_bytes()]));
    if size(&folder) > TARGET_LIMIT {
        shrink(session, &folder)?;
    }
    std::fs::create_dir_all(&folder).doing(format!("make the folder {}", folder.display()))?;
    cache::mark_used(&folder)?;
    cache::prune(&parent, &folder);
    Ok(folder)
}

/// Every clone leaves builds of our own packages behind; those go first, the dependencies only if they must.
fn shrink(session: &Session, folder: &Path) -> Outcome<()> {
    eprintln!(
        "    {} has grown too large: removing what can be built again",
        folder.display()
    );
    session.run(cargo(folder).args(["clean", "--package", "auto-unseal-operator", "--package", "xtask"]))?;
    if size(folder) > TARGET_LIMIT {
        std::fs::remove_dir_all(folder).doing(format!("empty {}", folder.display()))?;
    }
    Ok(())
}

/// The bytes below a folder; links are not followed.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => size(&entry.path()),
            Ok(about) => about.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_tells_where_one_part_ends() {
        assert_ne!(checksum(&[b"ab", b"c"]), checksum(&[b"a", b"bc"]));
        assert_eq!(checksum(&[b"ab", b"c"]), checksum(&[b"ab", b"c"]));
        assert_eq!(checksum(&[]).len(), 16);
    }
}
