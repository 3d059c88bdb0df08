//! A second process that outlives xtask by a moment and cleans up after it.
//!
//! xtask tells it, line by line through a pipe, which process groups and folders exist. The pipe closes when
//! xtask ends, however it ends (done, failed, SIGKILL); the guard then kills the groups and removes the
//! folders. The normal way out uses the same path, so it is exercised by every run.

use std::collections::HashSet;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::failure::{Doing, Outcome};

/// The hidden command that turns an xtask process into the guard.
pub const COMMAND: &str = "__guard";

/// xtask's end of the pipe.
pub struct Guard {
    process: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guard in a process group of its own, where a terminal's Ctrl-C does not reach it.
    pub fn start() -> Outcome<Self> {
        let program = std::env::current_exe().doing("find the xtask program itself")?;
        let mut process = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .doing("start the guard process")?;
        let pipe = process.stdin.take();
        Ok(Self { process, pipe })
    }

    /// The guard's own process, which a sweep of leftovers must spare.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// From now on the group dies with xtask.
    pub fn watch_group(&mut self, leader: u32) {
        self.tell("group", &leader.to_string());
    }

    /// The group's leader has been reaped: its number may soon belong to someone else.
    pub fn forget_group(&mut self, leader: u32) {
        self.tell("done", &leader.to_string());
    }

    /// The folder is removed when xtask ends.
    pub fn remove_at_end(&mut self, folder: &Path) {
        self.tell("folder", &folder.to_string_lossy());
    }

    fn tell(&mut self, verb: &str, object: &str) {
        if let Some(pipe) = &mut self.pipe {
            // A guard that was killed by hand cannot be told anything; the session still cleans up its own.
            let _ = writeln!(pipe, "{verb} {object}");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.process.wait();
    }
}

/// The guard's whole life: listen until the pipe closes, then clean up.
pub fn run() {
    let duties = Duties::listen(std::io::stdin().lock());
    for leader in &duties.groups {
        let _ = kill_process_group(*leader, Signal::KILL);
    }
    for folder in &duties.folders {
        remove(folder);
    }
}

#[derive(Debug, Default, PartialEq)]
struct Duties {
    groups: HashSet<Pid>,
    folders: HashSet<PathBuf>,
}

impl Duties {
    fn listen(input: impl BufRead) -> Self {
        let mut duties = Self::default();
        for line in input.lines().map_while(Result::ok) {
            match line.split_once(' ') {
                Some(("group", pid)) => duties.groups.extend(parse(pid)),
                Some(("done", pid)) => {
                    if let Some(pid) = parse(pid) {
                        duties.groups.remove(&pid);
                    }
                }
                Some(("folder", path)) => {
                    duties.folders.insert(PathBuf::from(path));
                }
                _ => {}
            }
        }
        duties
    }
}

/// Refuses 0 and 1: as a group to kill they would mean our own group, or everyone.
fn parse(pid: &str) -> Option<Pid> {
    pid.parse()
        .ok()
        .filter(|&number| number > 1)
        .and_then(Pid::from_raw)
}

/// A killed process may write for a moment longer, so removal is tried again.
fn remove(folder: &Path) {
    for _ in 0..20 {
        if std::fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_that_still_run_are_killed() {
        let duties = Duties::listen("group 41\ngroup 42\ndone 41\nfolder /tmp/a b\n".as_bytes());
        assert_eq!(duties.groups, HashSet::from_iter(Pid::from_raw(42)));
        assert_eq!(duties.folders, HashSet::from([PathBuf::from("/tmp/a b")]));
    }

    #[test]
    fn a_number_that_would_kill_everyone_is_ignored() {
        let duties = Duties::listen("group 0\ngroup 1\ngroup -1\ngroup x\nnonsense\n".as_bytes());
        assert_eq!(duties, Duties::default());
    }
}
