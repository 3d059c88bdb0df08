//! `cargo xtask test`: every gate a change must pass, the same here and in CI.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::control_plane::Options;
use crate::failure::{Failure, Outcome};
use crate::operator::{Profile, TestTargets};
use crate::session::Session;
use crate::{chaos, cluster, operator, process, repository, tools};

/// One gate.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Fmt,
    Clippy,
    Deny,
    Docs,
    Unit,
    Integration,
    Chaos,
}

const ALL: [Part; 7] = [
    Part::Fmt,
    Part::Clippy,
    Part::Deny,
    Part::Docs,
    Part::Unit,
    Part::Integration,
    Part::Chaos,
];

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Deny => "deny",
            Self::Docs => "docs",
            Self::Unit => "unit",
            Self::Integration => "integration",
            Self::Chaos => "chaos",
        }
    }
}

/// `cargo xtask test [PART…] [-- ARGS…]`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let (parts, rest) = parse(arguments)?;
    let target = repository::target_folder(session)?;
    let mut results = Vec::new();
    for part in parts {
        println!("\n==> {}", part.name());
        let started = Instant::now();
        let passed = match run_part(session, part, &target, rest) {
            Ok(passed) => passed,
            // One broken part must not hide what the others would say.
            Err(Failure::Said(message)) => {
                eprintln!("xtask: {message}");
                false
            }
            Err(interrupted) => return Err(interrupted),
        };
        results.push((part, passed, started.elapsed()));
    }
    print!("{}", summary(&results));
    Ok(i32::from(results.iter().any(|&(_, passed, _)| !passed)))
}

fn run_part(session: &Session, part: Part, target: &Path, rest: &[String]) -> Outcome<bool> {
    // All parts name the same packages and features, so that each dependency is compiled once to check and
    // once to run.
    let workspace = ["--workspace", "--all-features", "--locked"];
    let mut cargo = repository::cargo(target);
    match part {
        Part::Fmt => passes(session, cargo.args(["fmt", "--all", "--check"])),
        Part::Clippy => {
            cargo
                .arg("clippy")
                .args(workspace)
                .args(["--all-targets", "--", "-D", "warnings"]);
            passes(session, &mut cargo)
        }
        Part::Deny => deny(session),
        Part::Docs => {
            cargo
                .arg("doc")
                .args(workspace)
                .args(["--no-deps", "--document-private-items"]);
            passes(session, cargo.env("RUSTDOCFLAGS", "-D warnings"))
        }
        Part::Unit => {
            let TestTargets { house, .. } = operator::test_targets(target)?;
            cargo
                .arg("test")
                .args(workspace)
                .args(["--no-fail-fast", "--lib", "--bins"]);
            let tests = passes(session, cargo.args(named(&house)).args(after_dashes(rest)))?;
            let mut examples = repository::cargo(target);
            examples.arg("test").args(workspace).arg("--doc");
            Ok(passes(session, examples.args(after_dashes(rest)))? && tests)
        }
        Part::Integration => integration(session, target, rest),
        // By itself: among hundreds of tests its faults would be the machine's.
        Part::Chaos => chaos::short(session),
    }
}

fn integration(session: &Session, target: &Path, rest: &[String]) -> Outcome<bool> {
    let TestTargets { integration, .. } = operator::test_targets(target)?;
    if integration.is_empty() {
        // A gate that ran nothing has not been passed.
        return Err("no file of tests/ stands behind the feature `integration`, so nothing was run.".into());
    }
    tools::iproute2(session)?;
    let command = |target: &Path, more: &[&str]| {
        let mut cargo = repository::cargo(target);
        cargo
            .args([
                "test",
                "--workspace",
                "--all-features",
                "--locked",
                "--no-fail-fast",
            ])
            .args(more);
        cargo.args(named(&integration));
        cargo
    };
    // Compiled first: a control plane that idles through a build is only in its way.
    if !passes(session, &mut command(target, &["--no-run"]))? {
        return Ok(false);
    }
    cluster::with(session, &Options::default(), Profile::Debug, |stage| {
        let mut tests = command(target, &[]);
        passes(session, stage.dress(tests.args(after_dashes(rest))))
    })
}

/// Licences, banned crates and sources. Advisories need a database from outside the package registry, which not
/// every machine reaches, so they are asked for apart.
fn deny(session: &Session) -> Outcome<bool> {
    let mut command = Command::new(tools::cargo_deny(session)?);
    process::without_cargo_run(&mut command).current_dir(repository::root());
    command.args([
        "--all-features",
        "--locked",
        "check",
        "bans",
        "licenses",
        "sources",
    ]);
    if std::env::var_os("AUTOUNSEAL_ADVISORIES").is_some_and(|value| value == "1") {
        command.arg("advisories");
    } else {
        println!(
            "    advisories are not checked; set AUTOUNSEAL_ADVISORIES=1 where their database can be fetched"
        );
    }
    passes(session, &mut command)
}

fn passes(session: &Session, command: &mut Command) -> Outcome<bool> {
    Ok(session.run(command)?.success())
}

fn named(targets: &[String]) -> impl Iterator<Item = &str> {
    targets.iter().flat_map(|name| ["--test", name])
}

fn after_dashes(rest: &[String]) -> impl Iterator<Item = &str> {
    let dashes = if rest.is_empty() { None } else { Some("--") };
    dashes.into_iter().chain(rest.iter().map(String::as_str))
}

fn parse(arguments: &[String]) -> Outcome<(Vec<Part>, &[String])> {
    let (names, rest) = match arguments.iter().position(|argument| argument == "--") {
        Some(dashes) => (arguments.get(..dashes), arguments.get(dashes + 1..)),
        None => (Some(arguments), None),
    };
    let parts = names
        .unwrap_or_default()
        .iter()
        .map(|name| {
            ALL.into_iter().find(|part| part.name() == name).ok_or_else(|| {
                let known = ALL.map(Part::name).join(", ");
                Failure::Said(format!("`test` has no part `{name}`. The parts are {known}."))
            })
        })
        .collect::<Outcome<Vec<Part>>>()?;
    Ok((
        if parts.is_empty() { ALL.to_vec() } else { parts },
        rest.unwrap_or_default(),
    ))
}

fn summary(results: &[(Part, bool, Duration)]) -> String {
    let passed = results.iter().filter(|(_, passed, _)| *passed).count();
    let mut lines = String::new();
    for (part, passed, took) in results {
        let verdict = if *passed { "ok" } else { "FAILED" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            lines,
            "{:<12} {verdict:<7} {:>7.1} s",
            part.name(),
            took.as_secs_f32()
        );
    }
    let total: Duration = results.iter().map(|(_, _, took)| *took).sum();
    format!(
        "\n{lines}{:<20} {:>7.1} s\nparts: {passed} passed, {} failed\n",
        "total",
        total.as_secs_f32(),
        results.len() - passed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn without_names_every_part_runs() {
        let arguments = words("-- restart");
        let (parts, rest) = parse(&arguments).unwrap();
        assert_eq!(parts, ALL);
        assert_eq!(rest, ["restart"]);
    }

    #[test]
    fn named_parts_run_in_the_order_given_and_unknown_ones_are_refused() {
        assert_eq!(parse(&words("unit fmt")).unwrap().0, [Part::Unit, Part::Fmt]);
        assert!(parse(&words("unit lint")).is_err());
    }

    #[test]
    fn the_summary_closes_with_a_line_that_counts() {
        let second = Duration::from_secs(1);
        let text = summary(&[(Part::Fmt, true, second), (Part::Unit, false, second)]);
        assert!(text.contains("unit         FAILED      1.0 s\n"));
        assert!(text.ends_with("parts: 1 passed, 1 failed\n"));
    }
}
