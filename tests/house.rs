//! Holds the rules of the house: which module may use which, and what generated files must say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test says what is wrong by failing
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What each module may use of the others. The command line and the controller join everything.
const MAY_USE: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("yaml", &[]),
    ("seal", &["api"]),
    ("wrapped", &["api", "seal"]),
    ("provider", &["api", "seal", "wrapped", "fuzzing"]),
    ("stanza", &["api", "seal"]),
    ("servers", &["api", "seal"]),
    ("delivery", &["api", "seal", "stanza"]),
    // Facts for `seal::observed`, and the implementation of `provider::Cluster`.
    ("kube_ext", &["api", "seal", "provider"]),
    ("settings", &["seal", "yaml"]),
    ("lease", &[]),
    // No part of the product: what `fuzz/` calls, without a client.
    (
        "fuzzing",
        &["api", "seal", "provider", "wrapped", "servers", "yaml"],
    ),
    // The formats of the flags, and the implementation of `provider::Observer`.
    ("telemetry", &["provider", "settings"]),
    (
        "controller",
        &[
            "api",
            "seal",
            "provider",
            "stanza",
            "servers",
            "delivery",
            "kube_ext",
            "lease",
            "settings",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "api",
            "seal",
            "provider",
            "delivery",
            "controller",
            "kube_ext",
            "settings",
            "telemetry",
            "yaml",
        ],
    ),
];

/// Words that must not stand in a module's code, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    (
        "seal",
        &[
            "tokio::",
            "reqwest::",
            "aws_sdk",
            "aws_config",
            "aws_smithy",
            "std::env",
            "std::fs",
            "SystemTime",
            "Timestamp::now",
            "Instant::now",
            "kube::Client",
            "kube::Api",
        ],
        "decisions are pure",
    ),
    (
        "api",
        &["tokio::", "kube::Client", "std::env"],
        "the wire is types only",
    ),
    (
        "delivery",
        &["aws_sdk", "aws_config", "kube::", "tokio::", "std::env"],
        "content is made from values",
    ),
    (
        "stanza",
        &[
            "aws_sdk",
            "aws_config",
            "kube::",
            "tokio::",
            "std::env",
            "std::fs",
        ],
        "text is made from values",
    ),
    (
        "servers",
        &[
            "aws_sdk",
            "aws_config",
            "kube::",
            "std::env",
            "std::fs",
            "reqwest::",
        ],
        "a server is spoken to over the one connection that was verified",
    ),
    (
        "controller",
        &["aws_sdk", "aws_config", "aws_smithy", "std::env"],
        "SDK types stay in provider/<cloud>",
    ),
    (
        "kube_ext",
        &["aws_sdk", "aws_config", "std::env"],
        "the edge to Kubernetes knows no cloud",
    ),
    (
        "telemetry",
        &["aws_sdk", "aws_config::", "crate::seal", "crate::controller"],
        "telemetry knows no domain",
    ),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Code without comments and without the tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = product
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Modules of the crate that a text names, also inside `use crate::{…}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let word = |text: &str| -> String {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    };
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let (mut depth, mut expects_name) = (1, true);
        for (offset, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => expects_name = true,
                c if expects_name && depth == 1 && !c.is_whitespace() => {
                    names.insert(word(&group[offset..]));
                    expects_name = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn modules_use_only_what_they_may() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 40, "the sources were not found");
    let mut wrong = Vec::new();
    let modules: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    for file in files {
        let module = module_of(&file);
        let code = code(&file);
        let is_test = file.ends_with("tests.rs")
            || file
                .strip_prefix(root())
                .unwrap()
                .components()
                .any(|part| part.as_os_str() == "tests");
        if module == "main" || module == "lib" || is_test {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            panic!("{module} is a new module: say in this test what it may use");
        };
        for name in used(&code) {
            if modules.contains(name.as_str()) && name != module && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{} uses {name}", file.display()));
            }
        }
        for (_, words, why) in FORBIDDEN.iter().filter(|(name, _, _)| *name == module) {
            for word in words.iter().filter(|word| code.contains(**word)) {
                wrong.push(format!("{} says {word}: {why}", file.display()));
            }
        }
        // Text of a tenant cannot name the operator's files or environment where neither is read (security rule S9).
        let reads = code.contains("env::var") || code.contains("fs::read");
        let may_read = module == "cli" || module == "settings" || file.ends_with("operator_identity.rs");
        if reads && !may_read {
            wrong.push(format!("{} reads the environment or files", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rule_sees_what_a_file_uses() {
    let code =
        "use crate::{api::Reason, seal::{Fault, model::{A, B}}, yaml};\nfn f() { crate::provider::g() }";
    let expected: BTreeSet<String> = ["api", "seal", "yaml", "provider"].map(Into::into).into();
    assert_eq!(used(code), expected);
}

#[test]
fn the_definitions_in_the_repository_are_those_of_the_code() {
    let printed = fs::read_to_string(root().join("crds/autounseal.dev.yaml"))
        .expect("crds/autounseal.dev.yaml is missing: run cargo xtask gen");
    let stored = autounseal::yaml::documents(&printed).unwrap();
    assert_eq!(
        stored,
        autounseal::api::crds(),
        "crds/ is stale: run cargo xtask gen"
    );
}

/// The fuzz targets are a workspace of their own, whose lock file nobody else reads: without this a new dependency would
/// first be missed when somebody wants to fuzz.
#[test]
fn the_fuzz_targets_are_locked_to_the_dependencies_of_the_product() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    let (dependencies, _) = dependencies.split_once("\n\n").unwrap();
    let wanted = dependencies
        .lines()
        .filter(|line| !line.contains("optional = true"))
        .map(|line| line.split_once(" = ").unwrap().0);
    let lock = fs::read_to_string(root().join("fuzz/Cargo.lock")).unwrap();
    let (_, locked) = lock.split_once("\nname = \"auto-unseal-operator\"\n").unwrap();
    let (locked, _) = locked.split_once(']').unwrap();
    let missing: Vec<_> = wanted
        .filter(|name| !locked.contains(&format!(" \"{name}\"")) && !locked.contains(&format!(" \"{name} ")))
        .collect();
    assert!(
        missing.is_empty(),
        "fuzz/Cargo.lock lacks {missing:?}: run `cargo update -p auto-unseal-operator` in fuzz/"
    );
}
