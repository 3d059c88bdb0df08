//! `cargo xtask mutants`: breaks the code in one place after the other, and says which breaks no unit test noticed.
//!
//! Every break is compiled and tried by itself. So it is done to a copy of a few files with their own unit tests, as a
//! small crate without the clouds' SDKs and the controller: seconds for each break, where the product takes minutes. What
//! only another file's test would notice counts as unnoticed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{process, repository, tools};

/// A crate of some files of the product.
struct Excerpt {
    /// Its `src/lib.rs`; what a copied file asks of one that is left out is said here.
    library: &'static str,
    /// Files and folders that it takes.
    parts: &'static [&'static str],
}

/// Where a mistake is dear and the file small: mutated when no file is named.
const MUTATED: [&str; 7] = [
    "src/seal/check_value.rs",
    "src/seal/consumer_id.rs",
    "src/seal/store/place.rs",
    "src/wrapped/blob_info.rs",
    "src/provider/oci/signature.rs",
    "src/provider/pace.rs",
    "src/controller/turnstile.rs",
];

/// What every excerpt is built with and its tests read.
const COMMON: [&str; 4] = [
    "Cargo.lock",
    "rust-toolchain.toml",
    "docs/reasons.md",
    "tests/vectors",
];

/// The files of [`MUTATED`] and the little that they need.
const FEW: Excerpt = Excerpt {
    library: r"
pub mod api {
    mod reason;
    pub use reason::Reason;
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Purpose {
        Root,
        Other,
    }
}
pub mod seal {
    pub mod check_value;
    pub mod consumer_id;
    mod fault;
    mod key_bytes;
    pub mod template;
    pub mod store {
        pub mod place;
    }
    pub use {fault::{Fault, FaultKind}, key_bytes::KeyBytes};
}
pub mod wrapped;
pub mod provider {
    mod cache;
    pub mod pace;
    pub mod oci {
        pub mod signature;
    }
}
pub mod controller {
    pub mod turnstile;
    pub mod context {
        pub struct Context {
            pub turnstile: super::turnstile::Turnstile,
        }
        impl Context {
            pub fn look_at(&self, _: &str, _: &str) {}
        }
    }
}
",
    parts: &[
        "src/api/reason.rs",
        "src/seal/check_value.rs",
        "src/seal/consumer_id.rs",
        "src/seal/fault.rs",
        "src/seal/key_bytes.rs",
        "src/seal/store/place.rs",
        "src/seal/template.rs",
        "src/wrapped",
        "src/provider/cache.rs",
        "src/provider/oci/signature",
        "src/provider/oci/signature.rs",
        "src/provider/pace.rs",
        "src/controller/turnstile.rs",
    ],
};

/// The whole domain, for the other files of it; compiles several times as long.
const DOMAIN: Excerpt = Excerpt {
    library: "\npub mod api;\npub mod seal;\npub mod wrapped;\n",
    parts: &["src/api", "src/seal", "src/wrapped"],
};

impl Excerpt {
    fn holds(&self, file: &str) -> bool {
        self.parts.iter().any(|part| Path::new(file).starts_with(part))
    }

    /// Writes the crate anew into a folder.
    fn write(&self, folder: &Path) -> Outcome<()> {
        if folder.exists() {
            std::fs::remove_dir_all(folder).doing(format!("remove {}", folder.display()))?;
        }
        let root = repository::root();
        for part in COMMON.iter().chain(self.parts) {
            copy(&root.join(part), &folder.join(part))?;
        }
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).doing(format!("write {}", path.display()))
        };
        let manifest = repository::read(&root.join("Cargo.toml"))?;
        write("Cargo.toml", own_manifest(&String::from_utf8_lossy(&manifest)))?;
        let lints = "clippy::unwrap_used, clippy::expect_used, clippy::panic";
        // What only the files left out use is not to be told of at every break.
        let head = format!(
            "//! An excerpt.\n#![cfg_attr(test, allow({lints}))]\n#![allow(missing_docs, dead_code, unused_imports)]\n"
        );
        write("src/lib.rs", head + self.library)
    }
}

/// `cargo xtask mutants [--file FILE]…`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
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
    let all_in = |excerpt: &Excerpt| files.iter().all(|file| excerpt.holds(file));
    let (name, excerpt) = if all_in(&FEW) {
        ("few", FEW)
    } else if all_in(&DOMAIN) {
        ("domain", DOMAIN)
    } else {
        return Err(format!(
            "these files are in no excerpt together. One has {}; another {}.",
            FEW.parts.join(", "),
            DOMAIN.parts.join(", ")
        )
        .into());
    };
    let program = tools::cargo_mutants(session)?;
    // Dependencies are those of every other build.
    let target = repository::target_folder(session)?;
    let place = target.join("excerpts").join(name);
    excerpt.write(&place)?;
    let mut mutate = Command::new(program);
    process::without_cargo_run(&mut mutate)
        .current_dir(&place)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_INCREMENTAL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        // It is a copy already, and what was compiled of it is good for the next break.
        .args(["mutants", "--in-place", "--no-shuffle", "--colors", "never"])
        // Nobody waits for a test that hangs, but a busy machine is no such test.
        .args(["--minimum-test-timeout", "60", "--output"])
        .arg(&place);
    for file in files {
        mutate.args(["--file", file]);
    }
    mutate.args(["--", "--lib"]);
    let status = session.run(&mut mutate)?;
    let outcomes = repository::read(&place.join("mutants.out/outcomes.json"))?;
    let outcomes: Value = serde_json::from_slice(&outcomes).doing("read what came of the mutants")?;
    for (file, figures) in figures(&outcomes) {
        let [caught, missed, timed_out, unviable] = figures;
        let all: usize = figures.iter().sum();
        println!(
            "{all:>4} mutants: {caught:>4} caught, {missed:>3} missed, {timed_out:>3} timed out, {unviable:>3} do not compile  {file}"
        );
    }
    Ok(process::status_number(status))
}

/// By file: caught, missed, timed out, not compiled.
fn figures(outcomes: &Value) -> BTreeMap<String, [usize; 4]> {
    let mut files: BTreeMap<String, [usize; 4]> = BTreeMap::new();
    for outcome in outcomes["outcomes"].as_array().into_iter().flatten() {
        let Some(file) = outcome["scenario"]["Mutant"]["file"].as_str() else {
            continue;
        };
        let kinds = ["CaughtMutant", "MissedMutant", "Timeout", "Unviable"];
        let kind = kinds.iter().position(|kind| outcome["summary"] == *kind);
        if let Some(kind) = kind {
            files.entry(file.to_owned()).or_default()[kind] += 1;
        }
    }
    files
}

/// The product's manifest for its library alone, so that the same dependencies are asked for with the same features.
fn own_manifest(manifest: &str) -> String {
    let mut out = String::new();
    let mut is_kept = true;
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_kept = !line.starts_with("[[");
        }
        let names_others = ["members", "exclude", "default-run"]
            .iter()
            .any(|name| line.starts_with(name));
        if is_kept && !names_others {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn copy(from: &Path, to: &Path) -> Outcome<()> {
    if from.is_dir() {
        for entry in std::fs::read_dir(from).doing(format!("list {}", from.display()))? {
            let entry = entry.doing(format!("list {}", from.display()))?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).doing(format!("make the folder {}", folder.display()))?;
    }
    std::fs::copy(from, to)
        .doing(format!("copy {}", from.display()))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_excerpt_takes_exists() {
        for excerpt in [FEW, DOMAIN] {
            for part in excerpt.parts.iter().chain(&COMMON) {
                assert!(repository::root().join(part).exists(), "{part}");
            }
        }
    }

    #[test]
    fn the_files_that_are_mutated_are_in_the_small_excerpt() {
        for file in MUTATED {
            assert!(
                FEW.holds(file) && repository::root().join(file).is_file(),
                "{file}"
            );
        }
        assert!(!FEW.holds("src/seal/plan.rs") && DOMAIN.holds("src/seal/plan.rs"));
    }

    #[test]
    fn the_manifest_of_an_excerpt_has_the_same_dependencies_and_only_a_library() {
        let whole = repository::read(&repository::root().join("Cargo.toml")).unwrap();
        let whole = String::from_utf8(whole).unwrap();
        let own = own_manifest(&whole);
        assert!(!own.contains("[[") && !own.contains("\"xtask\"") && !own.contains("default-run"));
        let dependencies = |text: &str| {
            let (_, rest) = text.split_once("\n[dependencies]\n").unwrap();
            rest.split("\n[profile").next().unwrap().to_owned()
        };
        assert_eq!(dependencies(&own), dependencies(&whole));
        assert!(own.contains("[lib]\nname = \"autounseal\""));
    }

    #[test]
    fn figures_are_told_file_by_file() {
        let mutant = |file: &str, summary: &str| serde_json::json!({"scenario": {"Mutant": {"file": file}}, "summary": summary});
        let outcomes = serde_json::json!({"outcomes": [
            {"scenario": "Baseline", "summary": "Success"},
            mutant("a.rs", "CaughtMutant"), mutant("a.rs", "MissedMutant"), mutant("a.rs", "CaughtMutant"),
            mutant("b.rs", "Timeout"), mutant("b.rs", "Unviable"),
        ]});
        assert_eq!(
            figures(&outcomes),
            [
                ("a.rs".to_owned(), [2, 1, 0, 0]),
                ("b.rs".to_owned(), [0, 0, 1, 1])
            ]
            .into()
        );
    }
}
