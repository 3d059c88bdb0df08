//! `cargo xtask`: the one door for developers. Each command does one job from a fresh clone, bringing the
//! tools that it needs into the user's cache folder, and leaves nothing running.
//!
//! The map: `cluster`, `test`, `demo`, `bench`, `chaos`, `drill_failover`, `fuzz`, `coverage`, `mutants`,
//! `picture`, `reproduce`, `sbom`, `scan` and `generate` are the commands. They stand on [`control_plane`]
//! (etcd, kube-apiserver and moto, started and made ready), which stands on [`tools`] (programs built once into
//! the [`cache`], with [`go`] and [`python`]). [`session`] owns every process that is started, and its [`guard`]
//! ends them even when xtask itself is killed.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "xtask is a command line; what it prints is its result"
)]

mod bench;
mod cache;
mod campaign;
mod chaos;
mod chart;
mod cluster;
mod control_plane;
mod coverage;
mod credentials;
mod demo;
mod deploy;
mod drill_failover;
mod failure;
mod fuzz;
mod generate;
mod go;
mod guard;
mod http;
mod mutants;
mod operator;
mod picture;
mod ports;
mod process;
mod python;
mod repository;
mod reproduce;
mod sbom;
mod scan;
mod services;
mod session;
mod test;
mod tools;

use std::process::ExitCode;

use failure::{Failure, Outcome};

const USAGE: &str = "\
cargo xtask COMMAND

  cluster [--keep DIR] [--moto-auth] [--with-controller-manager] -- CMD...
        Starts a throwaway control plane (etcd, kube-apiserver) and moto (KMS, STS, IAM), applies crds/, runs
        CMD against them and returns its exit status. Nothing is left running.
        --keep DIR                  write logs, certificates and the kubeconfig to DIR and leave them there
        --moto-auth                 moto checks signatures and IAM policies from the first call
        --with-controller-manager   also run the workload, disruption and garbage collection controllers
  test [PART...] [-- ARGS...]
        Runs the gates: fmt clippy deny docs unit integration chaos. All of them unless parts are named.
        ARGS go to `cargo test` in the parts unit and integration.
  demo [--cloud aws|oci]
        The product's main job, step by step, on a throwaway control plane. The KMS is moto's (aws, the default)
        or the OCI test server's.
  bench reconcile|oci|store|scale|fairness|unseal|raft|imds [ARGS...]
        Measures the release build on a throwaway control plane. ARGS go to the measuring program.
        imds lays networks of its own, and so needs root and iproute2. raft kills the active server of a Vault
        cluster again and again, 10 minutes or --minutes M, and fails when one stays sealed.
  chaos [--minutes M] [--seed S]
        The fault campaign of docs/reliability.md for M minutes (5): replicas, apiserver and etcd are killed and frozen,
        networks and KMSes misbehave, people meddle. Every write is held against what is right. S repeats the faults.
  drill failover [--kills N]
        Kills the replica that acts N times (20) while SealConfigs come and change, holds every Secret against what was
        asked for, and prints how long nobody led.
  fuzz [TARGET...] [--seconds N] [--seed N]
        Runs the targets of fuzz/, all of them unless some are named, each for N seconds (60).
  coverage [--lines]
        Prints how many lines of what decides run in the unit tests, file by file, and with --lines which do not. Needs
        rustup's llvm-tools.
  mutants [--file FILE]...
        Breaks the code in one place after the other, and says which breaks no unit test noticed. Takes its time.
  picture [--again]
        Draws docs/images/dashboard.svg: minutes of a real run, scraped by a Prometheus (built once), and the dashboard's own
        queries. --again draws anew what the last run recorded.
  reproduce
        Builds the release of HEAD twice, in two places, and compares the bytes. Takes two release builds.
  sbom  Writes target/autounseal.cdx.json: every crate of the release, in CycloneDX.
  scan  Has checkov look at the rendered chart; docs/scan-findings.md has the answers. Fetches 290 MB once.
  gen   Writes crds/ anew from the code, and in the chart its copy and the table of values.
  tools Builds or fetches every tool that the other commands need, and prints where they are.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let status = match dispatch(&arguments) {
        Ok(status) => status,
        Err(Failure::Interrupted(signal)) => {
            eprintln!("xtask: stopped by signal {signal}; everything it started has been ended.");
            128 + signal
        }
        Err(Failure::Said(message)) => {
            eprintln!("xtask: {message}");
            1
        }
    };
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

/// Runs one command; the number is the exit status.
fn dispatch(arguments: &[String]) -> Outcome<i32> {
    let Some((command, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return Ok(2);
    };
    match command.as_str() {
        guard::COMMAND => {
            guard::run();
            Ok(0)
        }
        "cluster" => cluster::run(&session::Session::start()?, rest),
        "test" => test::run(&session::Session::start()?, rest),
        "demo" => demo::run(&session::Session::start()?, rest),
        "bench" => bench::run(&session::Session::start()?, rest),
        "chaos" => chaos::run(&session::Session::start()?, rest),
        "drill" => match rest.split_first() {
            Some((which, rest)) if which == "failover" => {
                drill_failover::run(&session::Session::start()?, rest)
            }
            _ => Err("`drill` needs the name of a drill: cargo xtask drill failover".into()),
        },
        "fuzz" => fuzz::run(&session::Session::start()?, rest),
        "coverage" => coverage::coverage(&session::Session::start()?, rest),
        "mutants" => mutants::run(&session::Session::start()?, rest),
        "picture" => picture::run(&session::Session::start()?, rest),
        "reproduce" => reproduce::run(&session::Session::start()?, rest),
        "sbom" => sbom::run(&session::Session::start()?, rest),
        "scan" => scan::run(&session::Session::start()?, rest),
        "gen" => generate::run(&session::Session::start()?, rest),
        "tools" => tools::run(&session::Session::start()?, rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(0)
        }
        other => {
            eprint!("xtask: there is no command `{other}`.\n\n{USAGE}");
            Ok(2)
        }
    }
}
