//! `cargo xtask cluster`: a command run against a throwaway control plane.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::control_plane::{ControlPlane, Options};
use crate::failure::Outcome;
use crate::operator::{self, Profile};
use crate::session::Session;
use crate::tools::Tools;
use crate::{process, repository};

/// `cargo xtask cluster [OPTIONS] -- CMD…`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let request = parse(arguments)?;
    let at_terminal = std::io::stdin().is_terminal();
    with(session, &request.options, Profile::Debug, |stage| {
        let Some((program, rest)) = request.command.split_first() else {
            return Ok(0);
        };
        let mut command = Command::new(program);
        stage.dress(command.args(rest));
        let status = session.run_for_user(&mut command, at_terminal)?;
        Ok(process::status_number(status))
    })
}

/// A control plane with the operator built beside it.
pub struct Stage<'a> {
    /// The running control plane.
    pub plane: ControlPlane<'a>,
    /// The operator's program.
    pub operator: PathBuf,
    target: &'a Path,
}

impl Stage<'_> {
    /// Gives a command everything that is promised to CMD.
    pub fn dress<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        self.plane
            .dress(command)
            .env("AUTOUNSEAL_BIN", &self.operator)
            // `cluster -- cargo test` builds where we have built.
            .env("CARGO_TARGET_DIR", self.target)
    }

    /// A command that is dressed already.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.dress(&mut command);
        command
    }
}

/// Provides tools, operator and control plane for as long as `work` takes.
pub fn with<T>(
    session: &Session,
    options: &Options,
    profile: Profile,
    work: impl FnOnce(&Stage) -> Outcome<T>,
) -> Outcome<T> {
    let tools = Tools::ensure(session, options.controller_manager)?;
    let target = repository::target_folder(session)?;
    let folder = session.temporary_folder("operator")?;
    let operator = operator::build(session, &target, profile, &folder)?;
    let plane = ControlPlane::start(session, &tools, options)?;
    let stage = Stage {
        plane,
        operator,
        target: &target,
    };
    let outcome = work(&stage);
    stage.plane.report_dead_services();
    stage.plane.stop(session);
    outcome
}

#[derive(Debug, PartialEq)]
struct Request {
    options: Options,
    command: Vec<String>,
}

fn parse(arguments: &[String]) -> Outcome<Request> {
    let mut options = Options::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--" => break,
            "--moto-auth" => options.moto_auth = true,
            "--with-controller-manager" => options.controller_manager = true,
            "--keep" => {
                let folder = rest.next().filter(|name| !name.starts_with("--"));
                options.keep = Some(folder.ok_or("--keep needs a folder: --keep DIR")?.into());
            }
            other => {
                return Err(format!(
                    "`cluster` does not know `{other}`. The command to run comes after `--`: \
                     cargo xtask cluster -- {other}"
                )
                .into());
            }
        }
    }
    let command: Vec<String> = rest.cloned().collect();
    if command.is_empty() {
        return Err("`cluster` needs a command to run: cargo xtask cluster -- CMD...".into());
    }
    Ok(Request { options, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_follows_the_dashes_is_left_alone() {
        let request = parse(&words("--moto-auth --keep /tmp/x -- sh -c --keep")).unwrap();
        assert!(request.options.moto_auth && !request.options.controller_manager);
        assert_eq!(request.options.keep, Some(PathBuf::from("/tmp/x")));
        assert_eq!(request.command, ["sh", "-c", "--keep"]);
    }

    #[test]
    fn a_request_without_a_command_is_refused() {
        assert!(parse(&words("--moto-auth")).is_err());
        assert!(parse(&words("--keep -- ls")).is_err());
        assert!(parse(&words("kubectl get ns")).is_err());
    }
}
