//! `cargo xtask coverage`: how much of what decides the unit tests reach.
//!
//! Only the product's own crate is built to count; the dependencies are those of every other build.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{process, repository};

/// What is decided or laid out byte by byte: there every line counts.
const LOOKED_AT: [&str; 3] = ["seal/", "wrapped/", "provider/oci/signature"];

/// Lines and how many of them ran.
#[derive(Clone, Copy, Default)]
struct Lines {
    all: usize,
    ran: usize,
}

impl Lines {
    fn of(counts: &BTreeMap<usize, u64>) -> Self {
        Self {
            all: counts.len(),
            ran: counts.values().filter(|&&count| count > 0).count(),
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

/// `cargo xtask coverage [--lines]`: of the unit and property tests; `--lines` names the lines that did not run.
pub fn coverage(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let with_lines = match arguments {
        [] => false,
        [flag] if flag == "--lines" => true,
        _ => return Err("`coverage` takes nothing but `--lines`.".into()),
    };
    let folder = session.temporary_folder("coverage")?;
    let program = build(session, &folder)?;
    let counts = folder.join("counts");
    let mut tests = Command::new(&program);
    process::without_cargo_run(&mut tests)
        .current_dir(repository::root())
        // What cargo sets for tests.
        .env("CARGO_MANIFEST_DIR", repository::root())
        .env("LLVM_PROFILE_FILE", counts.join("%p-%m.profraw"))
        .arg("--quiet");
    if !session.run(&mut tests)?.success() {
        return Err("the tests did not pass; they say why above.".into());
    }
    let report = report(session, &folder, &counts, &program)?;
    let files = read(&report);
    if files.is_empty() {
        return Err("no file that was asked about was told of.".into());
    }
    let mut sum = Lines::default();
    for (name, counts) in &files {
        let lines = Lines::of(counts);
        println!("{} of {:>4} lines  {name}", lines.share(), lines.all);
        if with_lines && lines.ran < lines.all {
            println!("        not {}", missed(counts));
        }
        sum.add(lines);
    }
    println!("{} of {:>4} lines  in all", sum.share(), sum.all);
    Ok(0)
}

/// The unit tests as a program that counts.
fn build(session: &Session, folder: &Path) -> Outcome<PathBuf> {
    let said = folder.join("build.json");
    let mut build = repository::cargo(&repository::target_folder(session)?);
    build
        .args(["rustc", "--package", "auto-unseal-operator", "--lib", "--locked"])
        .args(["--profile", "test", "--message-format", "json-render-diagnostics"])
        // After `--`, so that it is for this crate alone: with RUSTFLAGS every dependency would be built again.
        .args(["--", "-Cinstrument-coverage"])
        .stdout(std::fs::File::create(&said).doing(format!("write {}", said.display()))?);
    if !session.run(&mut build)?.success() {
        return Err("the unit tests do not build; the compiler says why above.".into());
    }
    let said = repository::read(&said)?;
    let program = String::from_utf8_lossy(&said)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .next_back();
    Ok(program.ok_or("cargo named no program that it built.")?)
}

/// What ran, line by line, in the format of lcov.
fn report(session: &Session, folder: &Path, counts: &Path, program: &Path) -> Outcome<String> {
    let libraries = process::answer(
        Command::new("rustc")
            .args(["--print", "target-libdir"])
            .current_dir(repository::root()),
    );
    // Only LLVM's tools of the compiler's own version read what it counts.
    let tools = libraries.and_then(|path| Some(Path::new(&path).parent()?.join("bin")));
    let tools = tools
        .filter(|tools| tools.join("llvm-cov").is_file())
        .ok_or("the compiler's llvm-cov is missing. Install it: rustup component add llvm-tools")?;
    let merged = folder.join("merged.profdata");
    let mut merge = Command::new(tools.join("llvm-profdata"));
    merge.args(["merge", "--sparse", "--output"]).arg(&merged);
    for entry in std::fs::read_dir(counts).doing("list what was counted")? {
        merge.arg(entry.doing("list what was counted")?.path());
    }
    if !session.run(&mut merge)?.success() {
        return Err("llvm-profdata did not read what was counted; it says why above.".into());
    }
    let exported = folder.join("lcov");
    let mut export = Command::new(tools.join("llvm-cov"));
    export
        .args(["export", "--format=lcov", "--instr-profile"])
        .arg(&merged)
        .arg(program)
        .stdout(std::fs::File::create(&exported).doing(format!("write {}", exported.display()))?);
    if !session.run(&mut export)?.success() {
        return Err("llvm-cov did not read what was counted; it says why above.".into());
    }
    Ok(String::from_utf8_lossy(&repository::read(&exported)?).into_owned())
}

/// How often each line of each file ran that is looked at; tests do not count.
fn read(report: &str) -> BTreeMap<String, BTreeMap<usize, u64>> {
    let root = repository::root();
    let mut files: BTreeMap<String, BTreeMap<usize, u64>> = BTreeMap::new();
    let mut file: Option<(String, usize)> = None;
    for line in report.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = Path::new(path)
                .strip_prefix(root.join("src"))
                .ok()
                .and_then(Path::to_str)
                .filter(|name| is_looked_at(name))
                .map(|name| {
                    let text = std::fs::read_to_string(path).unwrap_or_default();
                    (name.to_owned(), tests_begin(&text))
                });
        } else if let (Some(count), Some((name, tests))) = (line.strip_prefix("DA:"), &file)
            && let Some((number, count)) = count.split_once(',')
            && let (Ok(number), Ok(count)) = (number.parse::<usize>(), count.parse::<u64>())
            && number < *tests
        {
            *files.entry(name.clone()).or_default().entry(number).or_default() += count;
        }
    }
    files
}

fn is_looked_at(name: &str) -> bool {
    let is_test = name.ends_with("tests.rs") || name.contains("/tests/");
    !is_test && LOOKED_AT.iter().any(|part| name.starts_with(part))
}

/// The line at which a file's tests begin; they end the file.
fn tests_begin(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let is_start = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests {");
    lines
        .windows(2)
        .position(is_start)
        .map_or(usize::MAX, |at| at + 1)
}

/// Lines that did not run, those that follow each other as one: `3-5 9`.
fn missed(counts: &BTreeMap<usize, u64>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (&line, _) in counts.iter().filter(|(_, count)| **count == 0) {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == line => *end = line,
            _ => runs.push((line, line)),
        }
    }
    let words: Vec<String> = runs
        .into_iter()
        .map(|(start, end)| {
            if start == end {
                start.to_string()
            } else {
                format!("{start}-{end}")
            }
        })
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_rounded_up() {
        let share = |ran, all| Lines { all, ran }.share();
        assert_eq!(share(9999, 10_000).trim(), "99.9 %");
        assert_eq!(share(10, 10).trim(), "100.0 %");
    }

    #[test]
    fn lines_of_other_files_and_of_tests_do_not_count() {
        let file = |name: &str| repository::root().join("src").join(name).display().to_string();
        let place = repository::root().join("src/seal/store/place.rs");
        let tests = tests_begin(&std::fs::read_to_string(place).unwrap());
        assert!(tests < usize::MAX);
        let report = format!(
            "SF:{}\nDA:1,7\nDA:2,0\nDA:{tests},1\nend_of_record\nSF:{}\nDA:1,1\nSF:{}\nDA:1,1\nSF:/elsewhere/seal/x.rs\nDA:1,1\n",
            file("seal/store/place.rs"),
            file("seal/store/tests.rs"),
            file("controller/unseal/job.rs"),
        );
        let files = read(&report);
        assert_eq!(
            files,
            [("seal/store/place.rs".to_owned(), [(1, 7), (2, 0)].into())].into()
        );
        let lines = Lines::of(&files["seal/store/place.rs"]);
        assert_eq!((lines.ran, lines.all), (1, 2));
    }

    #[test]
    fn lines_that_follow_each_other_are_named_as_one() {
        let counts = [(1, 0), (2, 0), (3, 1), (4, 0), (6, 0), (7, 0), (8, 0)].into();
        assert_eq!(missed(&counts), "1-2 4 6-8");
    }
}
