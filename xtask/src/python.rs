//! Python programs, each in a virtual environment of the cache with every package pinned by hash.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Outcome};
use crate::session::Session;
use crate::{cache, process, repository};

/// The oldest Python that every pinned package accepts.
const OLDEST: &str = "3.11";

/// A virtual environment.
pub struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// The interpreter inside.
    pub fn python(&self) -> PathBuf {
        self.program("python")
    }

    /// A program that one of the packages installed.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// What a line of Python prints.
    pub fn answer(&self, code: &str) -> Outcome<String> {
        process::answer(Command::new(self.python()).args(["-c", code])).ok_or_else(|| {
            format!(
                "`{}` failed. Remove that folder and try again.",
                self.folder.display()
            )
            .into()
        })
    }
}

/// The environment that a requirements file describes.
pub fn environment(session: &Session, name: &str, requirements: &Path) -> Outcome<Environment> {
    let pinned = repository::read(requirements)?;
    let python = find()?;
    let key = repository::checksum(&[&pinned, python.version.as_bytes()]);
    let folder = cache::ensure(session, name, &key, |folder| {
        eprintln!("==> installing {name} with {}", python.program);
        let log = folder.join("install.log");
        let mut venv = Command::new(&python.program);
        venv.args(["-m", "venv"]).arg(folder);
        session.run_logged(&mut venv, "making a Python environment", &log)?;
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args([
            "-m",
            "pip",
            "install",
            "--no-input",
            "--disable-pip-version-check",
            "--require-hashes",
            "-r",
        ])
        .arg(requirements);
        session.run_logged(&mut pip, &format!("installing {name}"), &log)
    })?;
    Ok(Environment { folder })
}

struct Python {
    program: String,
    version: String,
}

fn find() -> Outcome<Python> {
    // Names the interpreter itself and not a shim in front of it: another Python behind the same shim must
    // not share an environment.
    let code = format!(
        "import sys, venv, ensurepip; assert sys.version_info >= ({}); print(sys.base_prefix, sys.version)",
        OLDEST.replace('.', ", ")
    );
    ["python3", "python"]
        .into_iter()
        .find_map(|program| {
            let version = process::answer(Command::new(program).args(["-c", &code]))?;
            Some(Python {
                program: program.to_owned(),
                version,
            })
        })
        .ok_or_else(|| Failure::Said(missing()))
}

fn missing() -> String {
    format!(
        "no usable Python found. Install Python {OLDEST} or newer with its venv module, so that `python3 -m venv` \
         works (on Debian and Ubuntu: apt-get install python3 python3-venv), and try again."
    )
}
