//! `cargo xtask gen`: files of the repository that are made from its code.

use std::path::PathBuf;
use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::operator::{self, Profile};
use crate::session::Session;
use crate::{chart, deploy, repository, tools};

/// Where the CRDs go, relative to the root.
const DEFINITIONS: &str = "crds/autounseal.dev.yaml";

/// `cargo xtask gen`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`gen` takes no argument, but was given `{unknown}`.").into());
    }
    let folder = session.temporary_folder("gen")?;
    let program = operator::build(
        session,
        &repository::target_folder(session)?,
        Profile::Debug,
        &folder,
    )?;
    let output = Command::new(&program)
        .arg("crd")
        .output()
        .doing("run `autounseal crd`")?;
    if !output.status.success() || output.stdout.is_empty() {
        return Err("`autounseal crd` failed or printed nothing; crds/ is left as it was.".into());
    }
    let path: PathBuf = repository::root().join(DEFINITIONS);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).doing(format!("make the folder {}", folder.display()))?;
    }
    std::fs::write(&path, output.stdout).doing(format!("write {}", path.display()))?;
    println!("wrote {DEFINITIONS}");
    chart::write(DEFINITIONS)?;
    deploy::write(&tools::helm(session)?)?;
    Ok(0)
}
