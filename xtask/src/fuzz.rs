//! `cargo xtask fuzz`: the targets of `fuzz/`, each for a while.
//!
//! What cargo-fuzz does without a sanitizer, on the compiler of the project: coverage comes from a pass of LLVM that stable
//! compilers have too. There is no `unsafe` in the product, so that a sanitizer of memory would look at others' code only.

use std::path::Path;
use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{process, repository};

/// How long one target runs unless said otherwise, in seconds.
const SECONDS: u32 = 60;

/// The flags by which libFuzzer sees what was reached (clang's documentation of `SanitizerCoverage`).
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// `cargo xtask fuzz [TARGET…] [--seconds N] [--seed N]`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let known = targets()?;
    let (mut chosen, mut seconds, mut seed) = (Vec::new(), SECONDS, 1_u32);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || -> Outcome<u32> {
            let value = arguments.next().and_then(|value| value.parse().ok());
            Ok(value.ok_or_else(|| format!("{argument} needs a number."))?)
        };
        match argument.as_str() {
            "--seconds" => seconds = number()?,
            "--seed" => seed = number()?,
            name if known.iter().any(|target| target == name) => chosen.push(name.to_owned()),
            other => {
                return Err(format!(
                    "`fuzz` does not know `{other}`. Targets: {}; flags: --seconds N, --seed N.",
                    known.join(", ")
                )
                .into());
            }
        }
    }
    if chosen.is_empty() {
        chosen = known;
    }
    let target = repository::target_folder(session)?.join("fuzz");
    let host = host()?;
    let mut build = repository::cargo(&target);
    build
        .current_dir(repository::root().join("fuzz"))
        .args(["build", "--locked", "--target", &host])
        // With a target named, programs that only build are built without them.
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    for name in &chosen {
        build.args(["--bin", name]);
    }
    if !session.run(&mut build)?.success() {
        return Err("the fuzz targets do not build.".into());
    }
    let mut found = 0;
    for name in &chosen {
        let program = target.join(&host).join("debug").join(name);
        let finds = target.join("finds").join(name);
        found += i32::from(!one(session, name, &program, &finds, seconds, seed)?);
    }
    Ok(i32::from(found > 0))
}

/// Whether a target ran to its end without a find.
fn one(
    session: &Session,
    name: &str,
    program: &Path,
    finds: &Path,
    seconds: u32,
    seed: u32,
) -> Outcome<bool> {
    // What is learnt is kept apart from the seeds, which are few and were chosen.
    let learnt = finds.join("corpus");
    std::fs::create_dir_all(&learnt).doing(format!("make the folder {}", learnt.display()))?;
    let log = finds.join("log");
    let mut fuzz = Command::new(program);
    fuzz.arg(&learnt)
        .arg(repository::root().join("fuzz/corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-seed={seed}"))
        .arg(format!("-artifact_prefix={}/", finds.display()))
        .args([
            "-print_final_stats=1",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-max_len=70000",
        ]);
    process::log_to(&mut fuzz, &log)?;
    let status = session.run(&mut fuzz)?;
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let stat = |what: &str| {
        let line = text.lines().rev().find_map(|line| line.strip_prefix(what));
        line.map_or("?", str::trim).to_owned()
    };
    let reached = text
        .lines()
        .rev()
        .find_map(|line| line.split_once(" cov: ")?.1.split(' ').next());
    println!(
        "{name:<18} {:>10} executions, {:>6} a second, {:>6} edges{}",
        stat("stat::number_of_executed_units:"),
        stat("stat::average_exec_per_sec:"),
        reached.unwrap_or("?"),
        if status.success() {
            ""
        } else {
            "   FOUND SOMETHING"
        }
    );
    if !status.success() {
        println!("{}\n(in {})", process::tail(&log, 40), finds.display());
    }
    Ok(status.success())
}

fn targets() -> Outcome<Vec<String>> {
    let folder = repository::root().join("fuzz/fuzz_targets");
    let files = std::fs::read_dir(&folder).doing(format!("read {}", folder.display()))?;
    let mut names: Vec<String> = files
        .flatten()
        .filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn host() -> Outcome<String> {
    let said = process::answer(Command::new("rustc").arg("-vV").current_dir(repository::root()));
    let said = said.unwrap_or_default();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.ok_or("rustc -vV does not name its host.")?.to_owned())
}
