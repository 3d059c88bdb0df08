//! `cargo xtask demo`: the product's main job, step by step, as a user would do it.
//!
//! Every line that begins with `$` is what has just been run, with the programs' folders left out. The story is
//! here and the same for every cloud; what a [`Cloud`] adds to it is in its own file. [`shell`] runs and shows the
//! commands, [`manifest`] writes what they are given.

mod aws;
mod manifest;
mod oci;
mod shell;

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::cluster;
use crate::control_plane::Options;
use crate::failure::{Doing, Failure, Outcome};
use crate::operator::Profile;
use crate::session::Session;
use crate::{http, ports, process};

use manifest::{NAME, SECRET};
use shell::{Shell, say};

/// `cargo xtask demo [--cloud aws|oci]`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    let choice = parse(arguments)?;
    cluster::with(session, &Options::default(), Profile::Debug, |stage| {
        let shell = Shell::new(session, stage)?;
        say("1. A KMS key.");
        let cloud: Box<dyn Cloud> = match choice {
            Choice::Aws => Box::new(aws::Aws::start(&shell)?),
            Choice::Oci => Box::new(oci::Oci::start(&shell)?),
        };
        println!("   {}", cloud.key());
        Demo { shell, cloud }.play()?;
        Ok(0)
    })
}

/// Whose KMS.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Choice {
    Aws,
    Oci,
}

fn parse(arguments: &[String]) -> Outcome<Choice> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, rest) = match words.as_slice() {
        ["--cloud", name, rest @ ..] => (*name, rest),
        ["--cloud"] => return Err("--cloud needs a name: --cloud aws or --cloud oci".into()),
        rest => ("aws", rest),
    };
    if let Some(unknown) = rest.first() {
        return Err(format!("`demo` takes --cloud aws or --cloud oci, but was given `{unknown}`.").into());
    }
    match name {
        "aws" => Ok(Choice::Aws),
        "oci" => Ok(Choice::Oci),
        other => Err(format!("`demo` knows no cloud `{other}`, only aws and oci.").into()),
    }
}

/// What differs between two clouds. Making one makes its KMS key.
trait Cloud {
    /// The KMS key's full name.
    fn key(&self) -> &str;

    /// The entry of `spec.seals`.
    fn seal(&self) -> String;

    /// What is special about the namespace: the lines below its `metadata`.
    fn namespace(&self) -> String {
        String::new()
    }

    /// What `autounseal wrap` needs beside the file and the key.
    fn wrap_arguments(&self) -> &[&str] {
        &[]
    }

    /// What `autounseal controller` needs.
    fn operator_arguments(&self) -> Vec<String> {
        Vec::new()
    }

    /// Brings the identity that opens the key into the namespace.
    fn bring_identity(&self, _shell: &Shell) -> Outcome<()> {
        Ok(())
    }

    /// How the KMS key gets new material, where the stand-in for the cloud can do that.
    fn rotation(&self) -> Option<&dyn Rotation> {
        None
    }
}

/// A KMS key that can get new material.
trait Rotation {
    /// Gives the KMS key new material, under which it encrypts from now on.
    fn rotate(&self, shell: &Shell) -> Outcome<()>;
}

struct Demo<'a> {
    shell: Shell<'a>,
    cloud: Box<dyn Cloud>,
}

impl Demo<'_> {
    fn play(&self) -> Outcome<()> {
        say("2. A root key: 32 random bytes that an application needs before it can start.");
        self.make_root_key()?;

        say("3. The root key is wrapped under the KMS key. What comes out may lie in Git.");
        let seal = self.cloud.seal();
        self.shell.write("seals.yaml", &manifest::seals(&seal))?;
        let wrapped = self.wrap()?;
        print!("{wrapped}");
        self.shell
            .write("sealconfig.yaml", &manifest::seal_config(&seal, &wrapped))?;
        let namespace = manifest::namespace(&self.cloud.namespace());
        self.shell.write("namespace.yaml", &namespace)?;

        say("4. The operator starts.");
        self.while_operator_runs(|| self.deliver())?;

        if let Some(rotation) = self.cloud.rotation() {
            self.rotate(rotation)?;
        }
        say("Done. Everything that was started ends now.");
        Ok(())
    }

    /// What happens while the operator runs.
    fn deliver(&self) -> Outcome<()> {
        let shell = &self.shell;
        say("5. The manifest is applied.");
        shell.show_file("namespace.yaml")?;
        shell.show_file("sealconfig.yaml")?;
        shell.kubectl(&["apply", "-f", "namespace.yaml"])?;
        self.cloud.bring_identity(shell)?;
        shell.kubectl(&["apply", "-f", "sealconfig.yaml"])?;
        let ready = ["wait", "--for=condition=Ready", "--timeout=60s"];
        shell.kubectl(&[&ready[..], &[&format!("sealconfig/{NAME}")]].concat())?;

        say("6. What a user sees.");
        shell.kubectl(&["get", "sealconfig"])?;
        shell.kubectl(&["get", "sealconfig", NAME, "-o", "jsonpath-as-json={.status}"])?;
        shell.kubectl(&["describe", "sealconfig", NAME])?;

        say("7. What the application's pods read. (Shown because this key is thrown away in a moment.)");
        shell.kubectl(&["get", "secret", SECRET, "-o", "yaml"])?;
        self.compare()?;
        println!("   The Secret holds exactly the 32 bytes of root.key.");

        say("8. Someone deletes the Secret; it comes back.");
        shell.kubectl(&["delete", "secret", SECRET])?;
        self.see_it_return()
    }

    /// The operator is started anew in between, for it may still know what it has unwrapped.
    fn rotate(&self, rotation: &dyn Rotation) -> Outcome<()> {
        say("9. The KMS key gets new material. The copy that was wrapped before still opens.");
        rotation.rotate(&self.shell)?;
        self.shell.kubectl(&["delete", "secret", SECRET])?;
        self.while_operator_runs(|| self.see_it_return())
    }

    fn see_it_return(&self) -> Outcome<()> {
        let took = self.wait_for_repair()?;
        println!(
            "   The Secret is back after {:.1} s, with the same bytes.",
            took.as_secs_f32()
        );
        Ok(())
    }

    fn make_root_key(&self) -> Outcome<()> {
        let line = "umask 077; head -c 32 /dev/urandom > root.key";
        println!("$ {line}");
        let mut command = self.shell.command("sh");
        self.shell.must(command.args(["-c", line]), "making a root key")
    }

    fn wrap(&self) -> Outcome<String> {
        let fixed = [
            "wrap",
            "-f",
            "seals.yaml",
            "--key",
            "master",
            "--to",
            self.cloud.key(),
        ];
        let arguments = [&fixed[..], &["--in", "root.key"], self.cloud.wrap_arguments()].concat();
        let output = self.shell.file("wrapped.yaml");
        let file = std::fs::File::create(&output).doing(format!("write {}", output.display()))?;
        println!("$ HOME=$PWD autounseal {}", arguments.join(" "));
        let mut command = self.shell.operator();
        command.args(arguments).stdout(file);
        self.shell
            .must(self.shell.at_home(&mut command), "`autounseal wrap`")?;
        let wrapped = std::fs::read_to_string(&output).doing(format!("read {}", output.display()))?;
        if wrapped.trim().is_empty() {
            return Err("`autounseal wrap` printed nothing.".into());
        }
        Ok(wrapped)
    }

    /// Starts the operator, and ends it after the work. When that fails, the operator's log may say why.
    fn while_operator_runs(&self, work: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        let mut operator = self.start_operator()?;
        let told = work();
        if told.is_err() {
            eprintln!("xtask: {}", self.last_words());
        }
        self.shell.session.end(&mut operator);
        told
    }

    /// Starts the operator and waits until it says that it is ready.
    fn start_operator(&self) -> Outcome<Child> {
        let port = ports::free(1)?.first().copied().unwrap_or_default();
        let mut arguments = vec![
            "controller".to_owned(),
            "--metrics-addr".to_owned(),
            format!("127.0.0.1:{port}"),
        ];
        arguments.extend(self.cloud.operator_arguments());
        println!("$ autounseal {} &", arguments.join(" "));
        let mut command = self.shell.operator();
        command.args(arguments).stdin(Stdio::null());
        process::log_to(&mut command, &self.operator_log())?;
        let started = Instant::now();
        let mut operator = self.shell.session.spawn(&mut command)?;
        while http::ask(port, "GET", "/readyz", &[], "") != Some(200) {
            self.shell.session.check()?;
            let ended = operator.try_wait().doing("look after the operator")?;
            if ended.is_some() || started.elapsed() > Duration::from_secs(30) {
                return Err(Failure::Said(format!(
                    "the operator did not become ready; {}",
                    self.last_words()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("   ready after {:.2} s", started.elapsed().as_secs_f32());
        Ok(operator)
    }

    fn operator_log(&self) -> PathBuf {
        self.shell.file("operator.log")
    }

    fn last_words(&self) -> String {
        let lines = process::tail(&self.operator_log(), 30);
        format!("the operator's last lines were:\n{lines}")
    }

    /// Compares the Secret with what was wrapped, as bytes.
    fn compare(&self) -> Outcome<()> {
        let template = "go-template={{index .data \"master.key\" | base64decode}}";
        let mut command = self
            .shell
            .quiet_kubectl(&["get", "secret", SECRET, "-o", template]);
        let delivered = command.output().doing("run kubectl")?.stdout;
        let original = std::fs::read(self.shell.file("root.key")).doing("read root.key")?;
        if delivered == original && original.len() == 32 {
            return Ok(());
        }
        Err(format!(
            "the Secret {SECRET} does not hold the root key: {} bytes delivered, {} bytes wrapped.",
            delivered.len(),
            original.len()
        )
        .into())
    }

    fn wait_for_repair(&self) -> Outcome<Duration> {
        let deleted = Instant::now();
        loop {
            self.shell.session.check()?;
            match self.compare() {
                Ok(()) => return Ok(deleted.elapsed()),
                Err(failure) if deleted.elapsed() > Duration::from_secs(20) => return Err(failure),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(text: &str) -> Outcome<Choice> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    #[test]
    fn the_cloud_is_aws_unless_another_is_named() {
        assert_eq!(choice("").unwrap(), Choice::Aws);
        assert_eq!(choice("--cloud aws").unwrap(), Choice::Aws);
        assert_eq!(choice("--cloud oci").unwrap(), Choice::Oci);
    }

    #[test]
    fn what_the_demo_does_not_know_is_refused() {
        for wrong in ["oci", "--cloud", "--cloud gcp", "--cloud oci twice"] {
            assert!(choice(wrong).is_err(), "{wrong}");
        }
    }
}
