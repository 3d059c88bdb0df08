//! The operator as a process: the binary, its flags and environment, and every byte it writes.

use std::{
    collections::BTreeMap,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How an operator is to be started; start it again with the same for a restart.
#[derive(Clone, Debug)]
pub struct Operator {
    flags: Vec<String>,
    environment: BTreeMap<String, String>,
    /// Words before the program, which run it somewhere else.
    launcher: Vec<String>,
}

/// A running operator; killed when dropped.
pub struct Running {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    metrics: SocketAddr,
    /// Spawn to `/readyz` 200.
    pub ready_after: Duration,
}

impl Operator {
    /// The binary under test, with the environment of `cargo xtask cluster` and nothing of this machine's.
    pub fn new() -> Self {
        let mut environment = BTreeMap::new();
        for name in [
            "KUBECONFIG",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_KMS",
            "AWS_ENDPOINT_URL_STS",
            "AWS_REGION",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            if let Ok(value) = std::env::var(name) {
                environment.insert(name.to_owned(), value);
            }
        }
        // No shared config, no metadata service: what a test does not give does not exist.
        environment.insert("HOME".into(), "/nonexistent".into());
        environment.insert("AWS_EC2_METADATA_DISABLED".into(), "true".into());
        Self {
            flags: Vec::new(),
            environment,
            launcher: Vec::new(),
        }
    }

    /// Adds flags.
    #[must_use]
    pub fn flags<T: Into<String>>(mut self, flags: impl IntoIterator<Item = T>) -> Self {
        self.flags.extend(flags.into_iter().map(Into::into));
        self
    }

    /// Replaces all flags.
    #[must_use]
    pub fn with_flags(mut self, flags: impl IntoIterator<Item = String>) -> Self {
        self.flags = flags.into_iter().collect();
        self
    }

    /// Takes flags away.
    #[must_use]
    pub fn without_flags(mut self, which: impl Fn(&str) -> bool) -> Self {
        self.flags.retain(|flag| !which(flag));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// What a variable is set to.
    pub fn variable(&self, name: &str) -> &str {
        &self.environment[name]
    }

    /// Takes a variable away.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Runs it by another program, such as one that puts it into a network namespace; then only [`Operator::spawn`]
    /// starts it, for its metrics are not on this machine's loopback.
    #[must_use]
    pub fn launched_by(mut self, words: Vec<String>) -> Self {
        self.launcher = words;
        self
    }

    /// Starts it without waiting.
    pub fn spawn(&self) -> Running {
        let metrics = free_port();
        let started = Instant::now();
        let binary = super::binary();
        let mut words = self.launcher.iter().chain([&binary]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .arg("controller")
            .arg("--metrics-addr")
            .arg(metrics.to_string())
            .args(&self.flags)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("AUTOUNSEAL_BIN names the operator's binary");
        let output = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().unwrap(), output.clone());
        collect(child.stderr.take().unwrap(), output.clone());
        Running {
            child,
            output,
            metrics,
            ready_after: started.elapsed(),
        }
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(&self) -> Running {
        let started = Instant::now();
        let mut running = self.spawn();
        loop {
            if get(running.metrics, "/readyz").is_some_and(|(status, _)| status == 200) {
                running.ready_after = started.elapsed();
                return running;
            }
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the operator ended with {status}:\n{}", running.output());
            }
            assert!(
                started.elapsed() < Duration::from_mins(1),
                "the operator is not ready:\n{}",
                running.output()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Running {
    /// Everything written so far, standard output and error.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Where its metrics are, on the loopback of the place where it runs.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// `/metrics`.
    pub fn metrics(&self) -> String {
        get(self.metrics, "/metrics")
            .map(|(_, body)| body)
            .unwrap_or_default()
    }

    /// The sum of a counter's series that hold all these fragments.
    pub fn metric(&self, name: &str, fragments: &[&str]) -> f64 {
        self.metrics()
            .lines()
            .filter(|line| line.starts_with(name) && fragments.iter().all(|fragment| line.contains(fragment)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, and waits for nothing.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.unwrap(), signal).unwrap();
    }

    /// Its exit code, once it has ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().and_then(|status| status.code())
    }

    /// SIGKILL; gives back everything that it wrote.
    pub fn kill(mut self) -> String {
        self.end(Signal::KILL)
    }

    /// SIGTERM, and waits; gives back everything that it wrote.
    pub fn stop(mut self) -> String {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> String {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
        let asked = Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if asked.elapsed() > Duration::from_secs(30) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!("the operator does not end on {signal:?}:\n{}", self.output());
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.output()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let output = self.output();
            let tail: Vec<_> = output.lines().rev().take(60).collect();
            eprintln!("--- the operator's last lines ---");
            for line in tail.into_iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(read) = pipe.read(&mut buffer) {
            if read == 0 {
                return;
            }
            into.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(&buffer[..read]);
        }
    });
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A plain GET; `None` while nobody answers.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    use std::io::Write;
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}
