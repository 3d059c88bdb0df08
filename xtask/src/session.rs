//! Everything that one invocation owns: its processes, its temporary folders, the signals sent to it.
//!
//! Whatever is started through a session ends with it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::{Doing, Failure, Outcome};
use crate::guard::Guard;
use crate::process;

/// How long a command may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// How often a running child is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// One invocation of xtask.
pub struct Session {
    guard: Mutex<Guard>,
    signal: Arc<AtomicUsize>,
}

impl Session {
    /// Starts the guard and begins to note signals instead of dying of them.
    pub fn start() -> Outcome<Self> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            let value = usize::try_from(number).unwrap_or_default();
            signal_hook::flag::register_usize(number, Arc::clone(&signal), value)
                .doing("listen for signals")?;
        }
        process::adopt_orphans();
        Ok(Self {
            guard: Mutex::new(Guard::start()?),
            signal,
        })
    }

    /// Fails once a signal has asked for the end.
    pub fn check(&self) -> Outcome<()> {
        match self.signal() {
            Some(signal) => Err(Failure::Interrupted(signal)),
            None => Ok(()),
        }
    }

    fn signal(&self) -> Option<i32> {
        i32::try_from(self.signal.load(Ordering::Relaxed))
            .ok()
            .filter(|&number| number != 0)
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh folder, readable by this user only, that is removed when the session ends.
    pub fn temporary_folder(&self, name: &str) -> Outcome<PathBuf> {
        use std::os::unix::fs::DirBuilderExt;
        let stamp = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() % 1_000_000_000;
        let folder = std::env::temp_dir().join(format!("autounseal-{name}-{}-{stamp}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .doing(format!("make the folder {}", folder.display()))?;
        self.guard().remove_at_end(&folder);
        Ok(folder)
    }

    /// Starts a program in a process group of its own; it ends with the session at the latest.
    pub fn spawn(&self, command: &mut Command) -> Outcome<Child> {
        self.check()?;
        let child = command
            .process_group(0)
            .spawn()
            .map_err(|error| process::cannot_run(command, &error))?;
        self.guard().watch_group(child.id());
        Ok(child)
    }

    /// Runs one of our own steps to its end; its input is empty.
    pub fn run(&self, command: &mut Command) -> Outcome<ExitStatus> {
        let child = self.spawn(command.stdin(Stdio::null()))?;
        self.wait_for_group(child, None)
    }

    /// Like [`Session::run`], telling every now and then that `label` is still at work.
    pub fn run_ticking(&self, command: &mut Command, label: &str) -> Outcome<ExitStatus> {
        let child = self.spawn(command.stdin(Stdio::null()))?;
        self.wait_for_group(child, Some(label))
    }

    /// Runs the developer's own command. At a terminal it stays in our foreground group, so that a shell or
    /// a debugger works and Ctrl-C reaches it directly; otherwise it gets a group that is ended as a whole.
    pub fn run_for_user(&self, command: &mut Command, at_terminal: bool) -> Outcome<ExitStatus> {
        if !at_terminal {
            let child = self.spawn(command)?;
            return self.wait_for_group(child, None);
        }
        self.check()?;
        let mut child = command
            .spawn()
            .map_err(|error| process::cannot_run(command, &error))?;
        let mut asked = None;
        loop {
            if let Some(status) = child.try_wait().doing("wait for the command")? {
                return Ok(status);
            }
            let signal = self.signal();
            // The terminal has sent SIGINT to the command itself; what it does about it is its own affair.
            if let Some(signal) = signal.filter(|&signal| signal != SIGINT && asked.is_none()) {
                asked = Some(signal);
                send(child.id(), signal);
            }
            std::thread::sleep(GLANCE);
        }
    }

    fn wait_for_group(&self, mut child: Child, label: Option<&str>) -> Outcome<ExitStatus> {
        let leader = child.id();
        let started = Instant::now();
        let mut ticks = process::Ticks::new();
        let mut deadline = None;
        let status = loop {
            if let Some(status) = child.try_wait().doing("wait for a command")? {
                break status;
            }
            match (self.signal(), deadline) {
                (Some(signal), None) => {
                    deadline = Some(Instant::now() + GRACE);
                    send_group(leader, signal);
                }
                (Some(_), Some(at)) if Instant::now() > at => send_group(leader, Signal::KILL.as_raw()),
                _ => {}
            }
            if let Some(label) = label
                && ticks.due(started.elapsed())
            {
                eprintln!("    {label}: still at it after {} s", started.elapsed().as_secs());
            }
            std::thread::sleep(GLANCE);
        };
        // What the command left behind in its group goes with it. The group's number cannot have been given
        // away yet if a member lives, and killing an empty group does nothing.
        send_group(leader, Signal::KILL.as_raw());
        self.guard().forget_group(leader);
        self.check()?;
        Ok(status)
    }

    /// Ends a program started with [`Session::spawn`] now.
    pub fn end(&self, child: &mut Child) {
        send_group(child.id(), Signal::KILL.as_raw());
        let _ = child.wait();
        self.guard().forget_group(child.id());
    }

    /// Runs a step whose output matters only when it fails: it goes to `log`, and its end is told then.
    pub fn run_logged(&self, command: &mut Command, label: &str, log: &Path) -> Outcome<()> {
        process::log_to(command, log)?;
        let status = self.run_ticking(command, label)?;
        if status.success() {
            return Ok(());
        }
        Err(format!(
            "{label} failed ({status}). The last lines of {}:\n{}",
            log.display(),
            process::tail(log, 30)
        )
        .into())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        process::kill_descendants(self.guard().pid());
    }
}

fn send(pid: u32, signal: i32) {
    if let (Some(pid), Some(signal)) = (to_pid(pid), Signal::from_named_raw(signal)) {
        let _ = kill_process(pid, signal);
    }
}

fn send_group(leader: u32, signal: i32) {
    if let (Some(pid), Some(signal)) = (to_pid(leader), Signal::from_named_raw(signal)) {
        let _ = kill_process_group(pid, signal);
    }
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}
