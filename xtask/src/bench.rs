//! `cargo xtask bench`: the release build, measured on a throwaway control plane.

use crate::cluster;
use crate::control_plane::Options;
use crate::failure::Outcome;
use crate::operator::Profile;
use crate::process;
use crate::repository;
use crate::session::Session;
use crate::tools;

/// `cargo xtask bench NAME [ARGS…]`: NAME is a `[[bench]]` of the operator's package.
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let Some((name, rest)) = arguments.split_first().filter(|(name, _)| !name.starts_with('-')) else {
        return Err(
            "`bench` needs the name of a measurement: cargo xtask bench reconcile --count 1000".into(),
        );
    };
    if name == "imds" {
        tools::iproute2(session)?;
    }
    let target = repository::target_folder(session)?;
    // Compiled before anything runs that is to be measured.
    let mut compile = repository::cargo(&target);
    compile.args([
        "bench",
        "--package",
        "auto-unseal-operator",
        "--bench",
        name,
        "--no-run",
    ]);
    if !session.run(&mut compile)?.success() {
        return Err(format!("the measuring program `{name}` does not build.").into());
    }
    cluster::with(session, &Options::default(), Profile::Release, |stage| {
        let mut measure = repository::cargo(&target);
        measure.args([
            "bench",
            "--quiet",
            "--package",
            "auto-unseal-operator",
            "--bench",
            name,
            "--",
        ]);
        let status = session.run(stage.dress(measure.args(rest)))?;
        Ok(process::status_number(status))
    })
}
