//! A Prometheus of our own on loopback: it scrapes what a file names, and answers queries.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::recorded::SCRAPE;
use crate::failure::{Doing, Outcome};
use crate::services::loopback;
use crate::session::Session;
use crate::{http, ports, process};

const STARTUP: Duration = Duration::from_mins(1);

/// A running server; it ends with the session.
pub struct Prometheus {
    process: Child,
    port: u16,
}

impl Prometheus {
    /// Starts it and waits until it is ready. It scrapes the targets of `targets.json` in the folder, once that is there.
    pub fn start(session: &Session, program: &Path, folder: &Path) -> Outcome<Self> {
        let file = folder.join("prometheus.yaml");
        std::fs::write(&file, configuration(folder)).doing(format!("write {}", file.display()))?;
        let port = ports::free(1)?
            .first()
            .copied()
            .ok_or("there is no free loopback port.")?;
        let log = folder.join("prometheus.log");
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .current_dir(folder)
            .stdin(Stdio::null());
        process::log_to(&mut command, &log)?;
        let mut process = session.spawn(&mut command)?;
        let started = Instant::now();
        while http::ask(port, "GET", "/-/ready", &[], "") != Some(200) {
            session.check()?;
            let ended = process.try_wait().doing("look after Prometheus")?;
            if ended.is_some() || started.elapsed() > STARTUP {
                let end = process::tail(&log, 20);
                return Err(
                    format!("Prometheus did not become ready. The last lines of its log:\n{end}").into(),
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { process, port })
    }

    /// Asks its API.
    pub fn ask(&self, path: &str, given: &[(&str, String)]) -> Outcome<Value> {
        let given: Vec<String> = given
            .iter()
            .map(|(name, value)| format!("{name}={}", encoded(value)))
            .collect();
        let path = format!("{path}?{}", given.join("&"));
        let answer = http::fetch(self.port, &path)
            .ok_or_else(|| format!("Prometheus at {} does not answer.", loopback(self.port)))?;
        serde_json::from_slice(&answer).doing("read what Prometheus answered")
    }

    /// Ends it.
    pub fn stop(mut self, session: &Session) {
        session.end(&mut self.process);
    }
}

/// Labels of the metrics win over those of the target, as with the chart's monitors.
fn configuration(folder: &Path) -> String {
    // As JSON writes it, which is YAML too.
    let targets = Value::from(folder.join("targets.json").display().to_string());
    format!(
        "global: {{scrape_interval: {SCRAPE}s, scrape_timeout: {SCRAPE}s}}\n\
         scrape_configs:\n\
         - job_name: auto-unseal-operator\n  \
           honor_labels: true\n  \
           file_sd_configs:\n  \
           - {{files: [{targets}], refresh_interval: 1s}}\n",
    )
}

/// A value of a query, of which every byte but letters and digits is escaped.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |out, byte| {
        if byte.is_ascii_alphanumeric() {
            out + char::from(byte).encode_utf8(&mut [0; 4])
        } else {
            out + &format!("%{byte:02X}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_passes_unharmed() {
        assert_eq!(
            encoded("a{b=~\".*\"} + 1"),
            "a%7Bb%3D%7E%22%2E%2A%22%7D%20%2B%201"
        );
    }

    #[test]
    fn the_targets_are_those_of_the_folder() {
        let text = configuration(Path::new("/tmp/a b"));
        let names = "  file_sd_configs:\n  - {files: [\"/tmp/a b/targets.json\"], refresh_interval: 1s}\n";
        assert!(text.ends_with(names), "{text}");
        assert!(text.contains("  honor_labels: true\n"));
    }
}
