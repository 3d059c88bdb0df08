//! `cargo xtask sbom`: what the release is made of, in CycloneDX, by cargo-cyclonedx.

use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{repository, tools};

const NAME: &str = "autounseal.cdx";

/// `cargo xtask sbom`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`sbom` takes no argument, but was given `{unknown}`.").into());
    }
    let target = repository::target_folder(session)?;
    let mut make = Command::new(tools::cargo_cyclonedx(session)?);
    make.current_dir(repository::root());
    make.args([
        "cyclonedx",
        "--manifest-path",
        "Cargo.toml",
        "--format",
        "json",
        "--spec-version",
        "1.5",
    ]);
    // What is built for, and not what it is built with.
    make.args(["--target", "all", "--no-build-deps", "--override-filename", NAME]);
    if !session.run(&mut make)?.success() {
        return Err("cargo-cyclonedx failed; it says why above.".into());
    }
    let written = repository::root().join(format!("{NAME}.json"));
    let place = target.join(format!("{NAME}.json"));
    std::fs::rename(&written, &place).doing(format!("move {}", written.display()))?;
    let _ = std::fs::remove_file(repository::root().join(format!("xtask/{NAME}.json")));
    let bom: serde_json::Value =
        serde_json::from_slice(&repository::read(&place)?).doing("read what cargo-cyclonedx wrote")?;
    let count = bom["components"].as_array().map_or(0, Vec::len);
    if count == 0 {
        return Err("cargo-cyclonedx wrote a list without a component.".into());
    }
    println!("{} names {count} components", place.display());
    Ok(0)
}
