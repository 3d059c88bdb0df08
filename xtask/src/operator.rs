//! The operator's own programs, built by cargo.

use std::path::{Path, PathBuf};

use crate::failure::{Doing, Outcome};
use crate::process;
use crate::repository;
use crate::session::Session;

const PROGRAM: &str = "autounseal";

/// Which build.
#[derive(Clone, Copy, PartialEq)]
pub enum Profile {
    /// Quick to build; what tests run.
    Debug,
    /// What users run.
    Release,
}

/// Builds the operator and gives a link to the program inside `folder`: the target folder may be shared
/// with other clones, whose next build would put their program in this one's place.
///
/// A debug build gives way to the program that AUTOUNSEAL_BIN names.
pub fn build(session: &Session, target: &Path, profile: Profile, folder: &Path) -> Outcome<PathBuf> {
    if let Some(named) = std::env::var_os("AUTOUNSEAL_BIN").filter(|name| !name.is_empty())
        && profile == Profile::Debug
    {
        eprintln!(
            "    using the operator that AUTOUNSEAL_BIN names: {}",
            named.display()
        );
        return std::path::absolute(named).doing("read AUTOUNSEAL_BIN");
    }
    let mut command = repository::cargo(target);
    command.args([
        "build",
        "--package",
        "auto-unseal-operator",
        "--bins",
        "--message-format=json-render-diagnostics",
    ]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    let messages = folder.join("cargo-build.json");
    let file = std::fs::File::create(&messages).doing(format!("write {}", messages.display()))?;
    let status = session.run_ticking(command.stdout(file), "building the operator")?;
    if !status.success() {
        return Err("the operator does not build; the compiler says why above.".into());
    }
    let text = std::fs::read_to_string(&messages).doing(format!("read {}", messages.display()))?;
    let built = executable(&text)
        .ok_or_else(|| format!("cargo built no program named `{PROGRAM}`. Is its [[bin]] in Cargo.toml?"))?;
    let link = folder.join(PROGRAM);
    if std::fs::hard_link(&built, &link).is_err() {
        std::fs::copy(&built, &link).doing(format!("copy {} to {}", built.display(), link.display()))?;
    }
    Ok(link)
}

/// Finds the program among cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == PROGRAM)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// The tests of `tests/`, told apart by whether they need a control plane.
#[derive(Debug, Default, PartialEq)]
pub struct TestTargets {
    /// Run anywhere.
    pub house: Vec<String>,
    /// Stand behind the feature `integration`.
    pub integration: Vec<String>,
}

/// Asks cargo for the test targets of the operator's package.
pub fn test_targets(target: &Path) -> Outcome<TestTargets> {
    let mut command = repository::cargo(target);
    command.args(["metadata", "--format-version=1", "--no-deps"]);
    let text = process::answer(&mut command)
        .ok_or("`cargo metadata` failed. Run it by hand to see why; Cargo.toml is probably at fault.")?;
    let metadata = serde_json::from_str(&text).doing("read the output of `cargo metadata`")?;
    Ok(sort_targets(&metadata, |path| {
        std::fs::read_to_string(path).unwrap_or_default()
    }))
}

/// A target is an integration test if Cargo.toml or its own first lines require the feature.
fn sort_targets(metadata: &serde_json::Value, read: impl Fn(&str) -> String) -> TestTargets {
    let mut sorted = TestTargets::default();
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    for target in list(&metadata["packages"])
        .iter()
        .flat_map(|package| list(&package["targets"]))
    {
        let Some(name) = target["name"].as_str() else {
            continue;
        };
        if !list(&target["kind"]).iter().any(|kind| kind == "test") {
            continue;
        }
        let required = list(&target["required-features"])
            .iter()
            .any(|feature| feature == "integration");
        let source = target["src_path"].as_str().map(&read).unwrap_or_default();
        if required || source.contains("#![cfg(feature = \"integration\")]") {
            sorted.integration.push(name.to_owned());
        } else {
            sorted.house.push(name.to_owned());
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_other_messages() {
        let messages = r#"{"reason":"build-script-executed"}
{"reason":"compiler-artifact","target":{"name":"autounseal"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"autounseal"},"executable":"/t/debug/autounseal"}
not json"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/debug/autounseal")));
    }

    #[test]
    fn tests_are_told_apart_by_the_feature_they_require() {
        let metadata = serde_json::json!({"packages": [{"targets": [
            {"name": "autounseal", "kind": ["lib"]},
            {"name": "modules", "kind": ["test"], "src_path": "modules.rs"},
            {"name": "marked", "kind": ["test"], "src_path": "marked.rs"},
            {"name": "listed", "kind": ["test"], "src_path": "x.rs", "required-features": ["integration"]},
        ]}]});
        let sorted = sort_targets(&metadata, |path| match path {
            "marked.rs" => "//! x\n#![cfg(feature = \"integration\")]\n".to_owned(),
            _ => String::new(),
        });
        assert_eq!(sorted.house, ["modules"]);
        assert_eq!(sorted.integration, ["marked", "listed"]);
    }
}
