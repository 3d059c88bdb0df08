//! The command line: one file a subcommand. Help text is documentation, errors name the fix.

mod check;
mod cluster;
mod controller;
mod crd;
mod destination;
mod doctor;
mod forget_init;
mod import;
mod manifest;
mod offline;
mod output;
mod rewrap;
mod schema;
mod sending;
mod status;
mod stored;
mod unwrap;
mod version;
mod wrap;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use output::Output;

use crate::seal::Fault;

/// Unwraps root keys with cloud KMS keys and puts them where Kubernetes workloads need them.
///
/// A *seal* is a KMS key. A *root key* is a secret that a workload needs before it can start. Root keys lie in Git or in
/// the cluster only wrapped (encrypted under a seal); the operator unwraps them into the Secrets that the pods read.
#[derive(Debug, Parser)]
#[command(
    name = "autounseal",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 well, 1 the answer is no, 2 misuse.",
    after_long_help = "\
Examples:
  autounseal crd | kubectl apply --server-side -f -
  autounseal check -f seal.yaml
  head -c 32 /dev/urandom | autounseal wrap -f seal.yaml --key master --to arn:aws:kms:eu-west-1:123456789012:key/…
  autounseal unwrap -f seal.yaml --key master --out-file master.key
  autounseal rewrap -f seal.yaml --in-place --to arn:aws:kms:eu-west-1:123456789012:key/…
  autounseal import bank-vaults --from ./bucket --seal aws
  autounseal status -A
  autounseal doctor -n billing app

Exit codes: 0 well, 1 the answer is no (a manifest is wrong, a key cannot be opened), 2 misuse (the command itself
cannot be carried out as it was given)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do. Each command is explained at its arguments, where its help comes from.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // a comment on a variant would take the place of that help
pub enum Command {
    /// Run the operator
    Controller(Box<crate::settings::ControllerArgs>),
    Crd(crd::CrdArgs),
    Check(check::CheckArgs),
    Wrap(wrap::WrapArgs),
    Unwrap(Box<unwrap::UnwrapArgs>),
    Rewrap(rewrap::RewrapArgs),
    Import(import::ImportArgs),
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    ForgetInit(forget_init::ForgetInitArgs),
    Version(version::VersionArgs),
}

/// Runs a command.
pub async fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Controller(args) => controller::run(&args).await,
        Command::Crd(args) => crd::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Wrap(args) => wrap::run(&args).await,
        Command::Unwrap(args) => unwrap::run(&args).await,
        Command::Rewrap(args) => rewrap::run(&args).await,
        Command::Import(args) => import::run(&args),
        Command::Status(args) => status::run(&args).await,
        Command::Doctor(args) => doctor::run(&args).await,
        Command::ForgetInit(args) => forget_init::run(&args).await,
        Command::Version(args) => {
            version::run(&args);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::from(1),
        Err(Failure::No(message)) => {
            output::error(&message);
            ExitCode::from(1)
        }
        Err(Failure::Misuse(message)) => {
            output::error(&message);
            ExitCode::from(2)
        }
    }
}

/// How a command ends when it does not end well.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The answer is no, and the report has said why.
    Told,
    /// The answer is no.
    No(String),
    /// The command cannot be carried out as it was given.
    Misuse(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::No(fault.to_string())
    }
}

type Done = Result<(), Failure>;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_ends_prints_for_people_or_for_programs() {
        fn check(command: &clap::Command) {
            for command in command.get_subcommands() {
                check(command);
            }
            let prints = command
                .get_arguments()
                .any(|argument| argument.get_id() == "output");
            let ends = !command.has_subcommands() && command.get_name() != "controller";
            assert_eq!(prints, ends, "{}", command.get_name());
        }
        check(&Cli::command());
    }

    #[test]
    fn every_argument_is_explained() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let explained = ["controller", "version"].contains(&command.get_name());
            assert!(
                explained || command.get_long_about().is_some(),
                "{}",
                command.get_name()
            );
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }
}
