//! `cargo xtask reproduce`: the same sources, built in two places, must give the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{process, repository};

/// `cargo xtask reproduce`: builds the release of HEAD twice, from copies whose paths have nothing in common, and compares.
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`reproduce` takes no argument, but was given `{unknown}`.").into());
    }
    let folder = session.temporary_folder("reproduce")?;
    let mut digests = Vec::new();
    // Paths of different lengths, so that nothing lines up by chance.
    for place in ["one", "another-place/two"] {
        let sources = folder.join(place);
        copy_of_head(session, &sources)?;
        let target = folder.join(format!("target-{}", digests.len()));
        let mut build = Command::new("cargo");
        process::without_cargo_run(&mut build)
            .args(["build", "--locked", "--release", "--bin", "autounseal"])
            .current_dir(&sources);
        for (name, value) in environment(&sources, &target, &cargo_home()?, &time_of_head()?) {
            build.env(name, value);
        }
        if !session.run_ticking(&mut build, "building the release")?.success() {
            return Err("the release does not build; the compiler says why above.".into());
        }
        let program = repository::read(&target.join("release/autounseal"))?;
        std::fs::remove_dir_all(&target).doing(format!("remove {}", target.display()))?;
        let digest = Sha256::digest(&program);
        let digest = digest
            .iter()
            .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        println!("{digest}  {place}");
        digests.push(digest);
    }
    let same = digests.windows(2).all(|pair| pair[0] == pair[1]);
    println!(
        "{}",
        if same {
            "the same bytes"
        } else {
            "NOT the same bytes"
        }
    );
    Ok(i32::from(!same))
}

/// What is committed, and nothing else.
fn copy_of_head(session: &Session, place: &Path) -> Outcome<()> {
    std::fs::create_dir_all(place).doing(format!("make the folder {}", place.display()))?;
    let archive = place.with_extension("tar");
    let mut pack = Command::new("git");
    pack.args(["archive", "--format=tar", "--output"])
        .arg(&archive)
        .arg("HEAD");
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&archive).arg("-C").arg(place);
    for command in [pack.current_dir(repository::root()), &mut unpack] {
        if !session.run(command)?.success() {
            return Err("git and tar made no copy of HEAD.".into());
        }
    }
    Ok(())
}

fn time_of_head() -> Outcome<String> {
    let mut command = Command::new("git");
    command
        .args(["log", "-1", "--format=%ct"])
        .current_dir(repository::root());
    let time = process::answer(&mut command).ok_or("`git log` says nothing of HEAD.")?;
    Ok(time.trim().to_owned())
}

fn cargo_home() -> Outcome<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("CARGO_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cargo")))
        .ok_or_else(|| "neither CARGO_HOME nor HOME is set.".into())
}

/// What makes a build forget where it ran: names for the folders of sources and crates, in Rust and in the C of aws-lc, a
/// time that is the commit's, nothing incremental. The Dockerfile sets the same.
fn environment(sources: &Path, target: &Path, crates: &Path, time: &str) -> [(&'static str, String); 5] {
    let remap = |flag: &str| {
        let names = [(sources, "."), (target, "target"), (crates, "cargo")];
        names
            .map(|(path, name)| format!("{flag}{}={name}", path.display()))
            .join(" ")
    };
    [
        ("CARGO_TARGET_DIR", target.display().to_string()),
        ("CARGO_INCREMENTAL", "0".to_owned()),
        ("RUSTFLAGS", remap("--remap-path-prefix=")),
        ("CFLAGS", remap("-ffile-prefix-map=")),
        ("SOURCE_DATE_EPOCH", time.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_that_a_build_knows_gets_another_name() {
        let path = Path::new;
        let set = environment(path("/s"), path("/t"), path("/c"), "7");
        let value = |name: &str| &set.iter().find(|(one, _)| *one == name).unwrap().1;
        assert_eq!(
            value("RUSTFLAGS"),
            "--remap-path-prefix=/s=. --remap-path-prefix=/t=target --remap-path-prefix=/c=cargo"
        );
        assert_eq!(
            value("CFLAGS"),
            "-ffile-prefix-map=/s=. -ffile-prefix-map=/t=target -ffile-prefix-map=/c=cargo"
        );
        assert_eq!(
            (
                value("SOURCE_DATE_EPOCH").as_str(),
                value("CARGO_INCREMENTAL").as_str()
            ),
            ("7", "0")
        );
    }

    #[test]
    fn the_dockerfile_hides_the_same() {
        let text =
            String::from_utf8(repository::read(&repository::root().join("Dockerfile")).unwrap()).unwrap();
        for flag in [
            "--remap-path-prefix=/src=.",
            "-ffile-prefix-map=/src=.",
            "SOURCE_DATE_EPOCH",
            "CARGO_INCREMENTAL=0",
        ] {
            assert!(text.contains(flag), "{flag}");
        }
    }
}
