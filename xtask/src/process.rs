//! Small facts about running programs: their environment, their output, their descendants.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::failure::{Doing, Failure, Outcome};

/// The exit status as a shell would say it.
pub fn status_number(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// What to say when a program could not even be started.
pub fn cannot_run(command: &Command, error: &std::io::Error) -> Failure {
    let program = command.get_program().to_string_lossy();
    format!("cannot run `{program}`: {error}. Is it installed and on PATH?").into()
}

/// Sends both outputs of a command to a file.
pub fn log_to(command: &mut Command, log: &Path) -> Outcome<()> {
    let file = File::create(log).doing(format!("write {}", log.display()))?;
    let twin = file.try_clone().doing(format!("write {}", log.display()))?;
    command.stdout(file).stderr(twin);
    Ok(())
}

/// Runs a command that answers at once and gives what it printed, trimmed; nothing if it failed.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The last lines of a log, indented, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    last.iter().map(|line| ["    ", line, "\n"].concat()).collect()
}

/// When to tell that a long step still runs: often at first, then rarely.
pub struct Ticks(Duration);

impl Ticks {
    /// The first tick comes after 15 s.
    pub fn new() -> Self {
        Self(Duration::from_secs(15))
    }

    /// Whether a line is due after this long; each line is due once.
    pub fn due(&mut self, elapsed: Duration) -> bool {
        let due = elapsed >= self.0;
        if due {
            self.0 += Duration::from_secs(if elapsed.as_secs() < 60 { 15 } else { 60 });
        }
        due
    }
}

/// Takes away what `cargo run` adds to the environment for xtask itself; for another package's build it is
/// wrong, and a build script that looks at it would be run again for nothing.
pub fn without_cargo_run(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let ours = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if ours || name == "CARGO_BIN_NAME" || name == "CARGO_CRATE_NAME" {
            command.env_remove(&*name);
        }
    }
    command
}

/// Takes away the developer's own cloud identities and endpoints: a test must neither use nor depend on them.
pub fn without_clouds(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if belongs_to_a_cloud(&name) {
            command.env_remove(&*name);
        }
    }
    command
}

/// Whether an SDK reads the variable. OCI's for Go also takes an identity from variables meant for Terraform.
/// `AWS_LC_*` steers how a crate is compiled and has nothing to do with a cloud.
fn belongs_to_a_cloud(variable: &str) -> bool {
    let prefixes = ["AWS_", "OCI_", "TF_VAR_"];
    prefixes.iter().any(|prefix| variable.starts_with(prefix)) && !variable.starts_with("AWS_LC_")
}

/// On Linux, processes that lose their parent become ours, so that the sweep at the end finds them.
pub fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    {
        // Refused only by kernels older than 3.4; then the process groups alone must do.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
}

/// Kills everything that descends from this process, but for one. Without /proc it does nothing; the guard
/// still ends the process groups.
pub fn kill_descendants(spared: u32) {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let spared = i32::try_from(spared).unwrap_or_default();
    // Each round may orphan processes onto us that the round before did not see as ours.
    for _ in 0..5 {
        let doomed: Vec<i32> = descendants(own, &parents())
            .into_iter()
            .filter(|&pid| pid != spared)
            .collect();
        if doomed.is_empty() {
            return;
        }
        for pid in doomed.into_iter().filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every living process and its parent.
fn parents() -> HashMap<i32, i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return HashMap::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, living_parent(&stat)?))
        })
        .collect()
}

/// Reads the parent out of a line of /proc/PID/stat. The second field is the program's name in brackets and
/// may hold anything, brackets too; the state and the parent follow the last one.
fn living_parent(stat: &str) -> Option<i32> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        None
    } else {
        fields.next()?.parse().ok()
    }
}

fn descendants(root: i32, parents: &HashMap<i32, i32>) -> Vec<i32> {
    let mut found = Vec::new();
    let mut level = vec![root];
    while !level.is_empty() {
        level = parents
            .iter()
            .filter(|(pid, parent)| level.contains(parent) && !found.contains(*pid))
            .map(|(&pid, _)| pid)
            .collect();
        found.extend(&level);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_every_cloud_go_and_those_of_the_compiler_stay() {
        for gone in ["AWS_PROFILE", "OCI_CONFIG_FILE", "TF_VAR_private_key_path"] {
            assert!(belongs_to_a_cloud(gone), "{gone}");
        }
        for stays in ["AWS_LC_SYS_PREBUILT_NASM", "AUTOUNSEAL_OCI_PYTHON", "PATH"] {
            assert!(!belongs_to_a_cloud(stays), "{stays}");
        }
    }

    #[test]
    fn the_parent_is_found_behind_a_hostile_program_name() {
        assert_eq!(living_parent("7 (a) S 1 (b) R 42 7 7 0"), Some(42));
        assert_eq!(living_parent("7 (sh) Z 42 7"), None);
        assert_eq!(living_parent("garbage"), None);
    }

    #[test]
    fn descendants_are_found_at_every_depth() {
        let parents = HashMap::from([(2, 1), (3, 2), (4, 3), (9, 8)]);
        let mut found = descendants(2, &parents);
        found.sort_unstable();
        assert_eq!(found, [3, 4]);
    }

    #[test]
    fn a_tick_comes_once_and_then_more_rarely() {
        let mut ticks = Ticks::new();
        let at: Vec<u64> = (0..200)
            .filter(|&second| ticks.due(Duration::from_secs(second)))
            .collect();
        assert_eq!(at, [15, 30, 45, 60, 120, 180]);
    }
}
