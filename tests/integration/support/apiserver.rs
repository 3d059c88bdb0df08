//! The kube-apiserver of `cargo xtask cluster`, killed and started again by the one who measures or breaks things.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// How a process was started, so that it can be started again the same way.
pub struct Process {
    pid: u32,
    words: Vec<String>,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    again: Option<Child>,
}

impl Process {
    /// Finds the process among all of this machine's whose command line starts with a program of this name and holds
    /// `mark`.
    pub fn find(program: &str, mark: &str) -> Option<Self> {
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(Self::read).find(|process| {
            let name = process
                .words
                .first()
                .map(|word| word.rsplit('/').next() == Some(program));
            name == Some(true) && process.words.iter().any(|word| word.contains(mark))
        })
    }

    fn read(pid: u32) -> Option<Self> {
        let text = |name: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{name}")).ok()?;
            let parts = bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty());
            Some(
                parts
                    .map(|part| String::from_utf8_lossy(part).into_owned())
                    .collect::<Vec<_>>(),
            )
        };
        let environment = text("environ")?;
        let pairs = environment.iter().filter_map(|pair| pair.split_once('='));
        Some(Self {
            pid,
            words: text("cmdline")?,
            folder: fs::read_link(format!("/proc/{pid}/cwd")).ok()?,
            environment: pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            again: None,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// What stands behind this in a word of its command line.
    pub fn value(&self, flag: &str) -> Option<&str> {
        self.words.iter().find_map(|word| word.strip_prefix(flag))
    }

    /// Starts another one like it, each word of whose command line went through `change`, with these words more.
    pub fn another(&self, change: impl Fn(&str) -> String, more: &[&str]) -> Self {
        let words = self.words.iter().map(|word| change(word));
        let mut other = Self {
            pid: 0,
            words: words.chain(more.iter().map(|word| (*word).to_owned())).collect(),
            folder: self.folder.clone(),
            environment: self.environment.clone(),
            again: None,
        };
        other.launch();
        other
    }

    /// Started again as it was, if it is one of ours and has ended by itself.
    pub fn revive(&mut self) -> bool {
        let ended = match &mut self.again {
            Some(child) => child.try_wait().is_ok_and(|status| status.is_some()),
            None => false,
        };
        if ended {
            self.launch();
        }
        ended
    }

    /// SIGKILL, and started again as it was.
    pub fn restart(&mut self) {
        self.signal(Signal::KILL);
        match &mut self.again {
            Some(child) => {
                let _ = child.wait();
            }
            // Somebody else's child: gone when its files are.
            None => {
                while fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        self.launch();
    }

    fn launch(&mut self) {
        let mut words = self.words.iter();
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().unwrap();
        self.pid = child.id();
        self.again = Some(child);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.again {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The API server that KUBECONFIG names, by its port.
pub fn apiserver() -> Process {
    let kubeconfig = std::env::var("KUBECONFIG").unwrap();
    let text = fs::read_to_string(kubeconfig).unwrap();
    let (_, rest) = text
        .split_once("https://127.0.0.1:")
        .expect("the test cluster's kubeconfig");
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Process::find("kube-apiserver", &format!("--secure-port={port}")).expect("the test cluster's apiserver")
}

/// Waits until an API server that was started again is ready and knows our kinds, which it learns a while after that; one
/// that has ended, as its port was not free yet, is started once more. With a client of its own: the usual one waits longer
/// and longer between its tries.
pub async fn answers(apiserver: &mut Process) {
    let mut config = kube::Config::infer().await.unwrap();
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    loop {
        let answers = async |path: &str| {
            let request = ::http::Request::get(path).body(Vec::new()).unwrap();
            client.request_text(request).await.is_ok()
        };
        if answers("/readyz").await && answers("/apis/autounseal.dev/v1alpha1/sealconfigs?limit=1").await {
            return;
        }
        apiserver.revive();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
