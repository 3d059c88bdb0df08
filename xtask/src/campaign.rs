//! One of the integration tests by itself: for as long as asked, by hand, or as a part of the test command.

use std::process::Command;

use crate::cluster;
use crate::control_plane::Options;
use crate::failure::Outcome;
use crate::operator::Profile;
use crate::session::Session;
use crate::{process, repository};

/// Runs the test, also one that the others are to run without, with its output and what `dress` adds.
pub fn run(session: &Session, test: &str, dress: impl FnOnce(&mut Command)) -> Outcome<i32> {
    let target = repository::target_folder(session)?;
    let command = |more: &[&str]| {
        let mut cargo = repository::cargo(&target);
        // As the test command names them, so that nothing is compiled twice.
        cargo.args(["test", "--quiet", "--workspace", "--all-features", "--locked"]);
        cargo.args(["--test", "integration"]).args(more);
        cargo
    };
    // Compiled before anything runs whose times count.
    if !session.run(&mut command(&["--no-run"]))?.success() {
        return Err(format!("the integration tests, of which {test} is one, do not build.").into());
    }
    cluster::with(session, &Options::default(), Profile::Debug, |stage| {
        let mut tests = command(&["--", "--exact", test, "--include-ignored", "--nocapture"]);
        dress(&mut tests);
        Ok(process::status_number(session.run(stage.dress(&mut tests))?))
    })
}

/// Whether the integration tests hold a test of this name, in a file or the folder of its module.
#[cfg(test)]
pub fn is_there(test: &str) -> bool {
    let (module, name) = test.split_once("::").unwrap();
    let folder = repository::root().join("tests/integration");
    let texts = [format!("{module}.rs"), format!("{module}/mod.rs")].map(|file| folder.join(file));
    let text = texts.iter().find_map(|path| std::fs::read_to_string(path).ok());
    text.is_some_and(|text| text.contains(&format!("async fn {name}()")))
}
