//! Runs the commands of the story in a folder of their own, and shows them.

use std::ffi::OsStr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::manifest::NAMESPACE;
use crate::cluster::Stage;
use crate::failure::{Doing, Outcome};
use crate::process;
use crate::session::Session;

/// Where the commands run.
pub struct Shell<'a> {
    /// What owns the programs that keep running.
    pub session: &'a Session,
    /// The control plane and the operator's program.
    pub stage: &'a Stage<'a>,
    folder: PathBuf,
}

impl<'a> Shell<'a> {
    /// A shell in a fresh folder.
    pub fn new(session: &'a Session, stage: &'a Stage<'a>) -> Outcome<Self> {
        let folder = session.temporary_folder("demo")?;
        Ok(Self {
            session,
            stage,
            folder,
        })
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command in the folder, with the environment of the control plane.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.stage.command(program);
        command.current_dir(&self.folder);
        command
    }

    /// The operator's program.
    pub fn operator(&self) -> Command {
        self.command(&self.stage.operator)
    }

    /// Makes the folder the command's home, so that it finds the settings that the demo wrote there and none of
    /// the developer's.
    pub fn at_home<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("HOME", &self.folder)
    }

    /// kubectl in the demo's namespace, not shown.
    pub fn quiet_kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.stage.plane.kubectl();
        command
            .current_dir(&self.folder)
            .args(["-n", NAMESPACE])
            .args(arguments);
        command
    }

    /// kubectl in the demo's namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Outcome<()> {
        let line = arguments.join(" ");
        println!("$ kubectl -n {NAMESPACE} {line}");
        self.must(&mut self.quiet_kubectl(arguments), &format!("`kubectl {line}`"))
    }

    /// What a line of Python prints, with a comment that says what it stands for. Its output is not shown.
    pub fn python(&self, python: &Path, code: &str, comment: &str) -> Option<String> {
        let quoted = code.replace('"', "\\\"");
        println!("$ python3 -c \"{quoted}\"        # {comment}");
        process::answer(self.command(python).args(["-c", code]))
    }

    /// Runs a command that has to succeed.
    pub fn must(&self, command: &mut Command, what: &str) -> Outcome<()> {
        let status = self.session.run(command)?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{what} failed ({status}).").into())
        }
    }

    /// Writes a file, and the folder that it lies in; only this user may read it.
    pub fn write(&self, name: &str, text: &str) -> Outcome<()> {
        use std::io::Write;
        let path = self.file(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).doing(format!("make the folder {}", folder.display()))?;
        }
        std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .doing(format!("write {name}"))
    }

    /// Shows a file.
    pub fn show_file(&self, name: &str) -> Outcome<()> {
        let text = std::fs::read_to_string(self.file(name)).doing(format!("read {name}"))?;
        print!("$ cat {name}\n{text}");
        Ok(())
    }
}

/// A heading.
pub fn say(text: &str) {
    println!("\n== {text}");
}
