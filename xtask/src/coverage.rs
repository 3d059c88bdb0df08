//! `cargo xtask coverage` and `cargo xtask mutants`: how much of what decides the tests reach, and how much they notice.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{process, repository, tools};

/// What is decided or laid out byte by byte: there every line counts.
const LOOKED_AT: [&str; 3] = ["seal/", "wrapped/", "signature"];

/// Where a mistake is dear and the file small: mutated when no file is named.
const MUTATED: [&str; 6] = [
    "src/seal/check_value.rs",
    "src/seal/store/place.rs",
    "src/wrapped/blob_info.rs",
    "src/provider/oci/signature.rs",
    "src/provider/pace.rs",
    "src/controller/turnstile.rs",
];

/// Lines and how many of them ran.
#[derive(Clone, Copy, Default)]
struct Lines {
    all: u64,
    ran: u64,
}

impl Lines {
    fn read(summary: &Value) -> Self {
        let number = |name: &str| summary["lines"][name].as_u64().unwrap_or_default();
        Self {
            all: number("count"),
            ran: number("covered"),
        }
    }

    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.ran += other.ran;
    }

    /// In tenths of a percent, so that no number is rounded up to a hundred.
    fn share(self) -> String {
        let tenths = (self.ran * 1000).checked_div(self.all).unwrap_or(1000);
        format!("{:>5}.{} %", tenths / 10, tenths % 10)
    }
}

/// `cargo xtask coverage`: of the unit and property tests.
pub fn coverage(session: &Session, arguments: &[String]) -> Outcome<i32> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`coverage` takes no argument, but was given `{unknown}`.").into());
    }
    let target = repository::target_folder(session)?.join("coverage");
    std::fs::create_dir_all(&target).doing(format!("make the folder {}", target.display()))?;
    let report = target.join("coverage.json");
    let mut measure = Command::new(tools::cargo_llvm_cov(session)?);
    process::without_cargo_run(&mut measure)
        .current_dir(repository::root())
        .env("CARGO_TARGET_DIR", &target)
        // rustup brings llvm-tools of the compiler in use.
        .env("CARGO_LLVM_COV_SETUP", "yes")
        .args([
            "llvm-cov",
            "--package",
            "auto-unseal-operator",
            "--lib",
            "--locked",
        ])
        .args(["--json", "--summary-only", "--output-path"])
        .arg(&report);
    if !session.run(&mut measure)?.success() {
        return Err("the tests did not pass under cargo-llvm-cov; it says why above.".into());
    }
    let report: Value = serde_json::from_slice(&repository::read(&report)?).doing("read the coverage")?;
    let source = repository::root().join("src");
    let mut rows: Vec<(String, Lines)> = Vec::new();
    for file in report["data"][0]["files"].as_array().into_iter().flatten() {
        let name = Path::new(file["filename"].as_str().unwrap_or_default());
        let Some(name) = name.strip_prefix(&source).ok().and_then(Path::to_str) else {
            continue;
        };
        let is_test = name.ends_with("tests.rs") || name.contains("/tests/");
        if !is_test && LOOKED_AT.iter().any(|part| name.contains(part)) {
            rows.push((name.to_owned(), Lines::read(&file["summary"])));
        }
    }
    if rows.is_empty() {
        return Err("cargo-llvm-cov told of no file that was asked about.".into());
    }
    rows.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut sum = Lines::default();
    for (name, lines) in &rows {
        println!("{} of {:>4} lines  {name}", lines.share(), lines.all);
        sum.add(*lines);
    }
    println!("{} of {:>4} lines  in all", sum.share(), sum.all);
    Ok(0)
}

/// `cargo xtask mutants [--file FILE]…`: breaks the code in one place after the other, and says which breaks no unit test
/// noticed.
pub fn mutants(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let mut files = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--file", Some(file)) => files.push(file.as_str()),
            _ => {
                return Err(format!(
                    "`mutants` does not know `{argument}`: cargo xtask mutants --file src/seal/check_value.rs"
                )
                .into());
            }
        }
    }
    if files.is_empty() {
        files = MUTATED.to_vec();
    }
    // Dependencies are those of every other build; what is broken is a copy of the sources, elsewhere.
    let target = repository::target_folder(session)?;
    let mut mutate = Command::new(tools::cargo_mutants(session)?);
    process::without_cargo_run(&mut mutate)
        .current_dir(repository::root())
        .env("CARGO_TARGET_DIR", &target)
        .args([
            "mutants",
            "--package",
            "auto-unseal-operator",
            "--no-shuffle",
            "--output",
        ])
        .arg(&target);
    for file in files {
        mutate.args(["--file", file]);
    }
    // Every break is compiled and tried by itself: only what the unit tests need.
    mutate.args(["--", "--lib"]);
    let status = session.run(&mut mutate)?;
    Ok(process::status_number(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_are_mutated_exist() {
        for file in MUTATED {
            assert!(repository::root().join(file).is_file(), "{file}");
        }
    }

    #[test]
    fn a_share_is_never_rounded_up() {
        let share = |ran, all| Lines { all, ran }.share();
        assert_eq!(share(9999, 10_000).trim(), "99.9 %");
        assert_eq!(share(10, 10).trim(), "100.0 %");
    }
}
