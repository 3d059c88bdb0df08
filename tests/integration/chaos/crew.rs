//! The replicas of the operator, started again by whoever would do it in a cluster.

use rustix::process::Signal;

use super::link::Link;
use crate::support::{
    operator::{Operator, Running},
    server::Scratch,
    stage::Stage,
};

/// As libfaketime reads it: by so much the wall clock is off.
fn offset(seconds: i64) -> String {
    format!("{seconds:+}\n")
}

/// Two replicas, each with its own way to the API.
pub struct Crew {
    replicas: Vec<Replica>,
    /// What those wrote that are gone.
    pub output: String,
    /// How many had to be started again.
    pub restarts: usize,
}

struct Replica {
    operator: Operator,
    /// What its wall clock is read by, where there is a library that reads it.
    clock: Option<Scratch>,
    running: Option<Running>,
}

impl Crew {
    /// Starts them.
    pub fn start(stage: &Stage, kubeconfigs: [String; 2], clouds: [&Link; 2]) -> Self {
        let endpoints = clouds.map(Link::url).join(",");
        let replicas = kubeconfigs
            .into_iter()
            .zip(["first", "second"])
            .map(|(kubeconfig, identity)| {
                let operator = stage.operator().env("KUBECONFIG", kubeconfig).flags([
                    "--allowed-endpoints",
                    &endpoints,
                    // The Vault's pod is on this machine.
                    "--unseal-allow-loopback",
                    "--leader-elect",
                    &format!("--leader-elect-namespace={}", stage.namespace),
                    &format!("--leader-elect-identity={identity}"),
                ]);
                let (operator, clock) = with_clock(operator);
                Replica {
                    running: Some(operator.spawn()),
                    operator,
                    clock,
                }
            })
            .collect();
        Self {
            replicas,
            output: String::new(),
            restarts: 0,
        }
    }

    /// Ends one, which is then started again.
    pub fn kill(&mut self, which: usize) {
        if let Some(running) = self.replicas[which].running.take() {
            self.output.push_str(&running.kill());
        }
        self.tend();
    }

    /// Sends one a signal.
    pub fn signal(&self, which: usize, signal: Signal) {
        if let Some(running) = &self.replicas[which].running {
            running.signal(signal);
        }
    }

    /// Puts one's wall clock so far off; whether it could.
    pub fn set_clock(&self, which: usize, seconds: i64) -> bool {
        let Some(clock) = &self.replicas[which].clock else {
            return false;
        };
        // In one step, for it is read at any time.
        let fresh = Scratch::new(offset(seconds));
        std::fs::rename(fresh.path(), clock.path()).is_ok()
    }

    /// Starts those again that have ended.
    pub fn tend(&mut self) {
        for replica in &mut self.replicas {
            let ended = replica
                .running
                .as_mut()
                .is_none_or(|running| running.exit_code().is_some());
            if ended {
                if let Some(running) = replica.running.take() {
                    self.output.push_str(&running.output());
                }
                replica.running = Some(replica.operator.spawn());
                self.restarts += 1;
            }
        }
    }

    /// What they all say: metrics of those that run, and everything that was written.
    pub fn said(&self) -> String {
        let mut said = self.output.clone();
        for running in self
            .replicas
            .iter()
            .filter_map(|replica| replica.running.as_ref())
        {
            said.push_str(&running.output());
            said.push_str(&running.metrics());
        }
        said
    }
}

/// With a wall clock of its own; the clock by which waits and terms are measured stays the machine's, as where a node's
/// clock is set.
fn with_clock(operator: Operator) -> (Operator, Option<Scratch>) {
    let Ok(library) = std::env::var("AUTOUNSEAL_FAKETIME") else {
        return (operator, None);
    };
    let clock = Scratch::new(offset(0));
    let operator = operator
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", clock.path().display().to_string())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    (operator, Some(clock))
}
