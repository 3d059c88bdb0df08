//! `cargo xtask demo`: the product's main job, step by step, as a user would do it.
//!
//! Every line that begins with `$` is what has just been run, with the programs' folders left out.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{self, Stage};
use crate::control_plane::Options;
use crate::failure::{Doing, Outcome};
use crate::operator::Profile;
use crate::session::Session;
use crate::{http, ports, process};

const NAMESPACE: &str = "demo";
const NAME: &str = "demo-app";
const SECRET: &str = "demo-app-root-key";

/// `cargo xtask demo`
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`demo` takes no argument, but was given `{unknown}`.").into());
    }
    cluster::with(session, &Options::default(), Profile::Debug, |stage| {
        let demo = Demo {
            session,
            stage,
            folder: session.temporary_folder("demo")?,
        };
        demo.play()?;
        Ok(0)
    })
}

struct Demo<'a> {
    session: &'a Session,
    stage: &'a Stage<'a>,
    /// Where the files of the demo lie; every command runs in it.
    folder: PathBuf,
}

impl Demo<'_> {
    fn play(&self) -> Outcome<()> {
        say("1. A KMS key. This one lives in moto, a stand-in for AWS; its values are worth nothing.");
        let key = self.make_kms_key()?;
        println!("   {key}");

        say("2. A root key: 32 random bytes that an application needs before it can start.");
        self.make_root_key()?;

        say("3. The root key is wrapped under the KMS key. What comes out may lie in Git.");
        self.write("seals.yaml", &seals(&key))?;
        let wrapped = self.wrap(&key)?;
        print!("{wrapped}");
        self.write("sealconfig.yaml", &seal_config(&key, &wrapped))?;
        self.write("namespace.yaml", &namespace(&key))?;

        say("4. The operator starts.");
        let mut operator = self.start_operator()?;
        let told = self.deliver();
        if told.is_err() {
            eprintln!(
                "xtask: the operator's last lines were:\n{}",
                process::tail(&self.operator_log(), 30)
            );
        }
        self.session.end(&mut operator);
        told
    }

    /// What happens while the operator runs.
    fn deliver(&self) -> Outcome<()> {
        say("5. The manifest is applied.");
        self.show_file("namespace.yaml")?;
        self.show_file("sealconfig.yaml")?;
        self.kubectl(&["apply", "-f", "namespace.yaml"])?;
        self.kubectl(&["apply", "-f", "sealconfig.yaml"])?;
        let ready = ["wait", "--for=condition=Ready", "--timeout=60s"];
        self.kubectl(&[&ready[..], &[&format!("sealconfig/{NAME}")]].concat())?;

        say("6. What a user sees.");
        self.kubectl(&["get", "sealconfig"])?;
        self.kubectl(&["get", "sealconfig", NAME, "-o", "jsonpath-as-json={.status}"])?;
        self.kubectl(&["describe", "sealconfig", NAME])?;

        say("7. What the application's pods read. (Shown because this key is thrown away in a moment.)");
        self.kubectl(&["get", "secret", SECRET, "-o", "yaml"])?;
        self.compare()?;
        println!("   The Secret holds exactly the 32 bytes of root.key.");

        say("8. Someone deletes the Secret; it comes back.");
        self.kubectl(&["delete", "secret", SECRET])?;
        let took = self.wait_for_repair()?;
        println!(
            "   The Secret is back after {:.1} s, with the same bytes.",
            took.as_secs_f32()
        );

        say("Done. Everything that was started ends now.");
        Ok(())
    }

    fn make_kms_key(&self) -> Outcome<String> {
        let code = "import boto3; print(boto3.client('kms', 'us-east-1').create_key(Description='demo')['KeyMetadata']['Arn'])";
        println!("$ python3 -c \"{code}\"        # on AWS: aws kms create-key");
        process::answer(self.stage.command(self.stage.plane.python()).args(["-c", code])).ok_or_else(|| {
            "moto did not make a KMS key; see its log with `cargo xtask cluster --keep DIR`.".into()
        })
    }

    fn make_root_key(&self) -> Outcome<()> {
        let line = "umask 077; head -c 32 /dev/urandom > root.key";
        println!("$ {line}");
        self.must(
            self.here(Command::new("sh")).args(["-c", line]),
            "making a root key",
        )
    }

    fn wrap(&self, key: &str) -> Outcome<String> {
        let arguments = [
            "wrap",
            "-f",
            "seals.yaml",
            "--key",
            "master",
            "--to",
            key,
            "--in",
            "root.key",
        ];
        let output = self.folder.join("wrapped.yaml");
        let file = std::fs::File::create(&output).doing(format!("write {}", output.display()))?;
        println!("$ autounseal {}", arguments.join(" "));
        let mut command = self.here(self.stage.command(&self.stage.operator));
        self.must(command.args(arguments).stdout(file), "`autounseal wrap`")?;
        let wrapped = std::fs::read_to_string(&output).doing(format!("read {}", output.display()))?;
        if wrapped.trim().is_empty() {
            return Err("`autounseal wrap` printed nothing.".into());
        }
        Ok(wrapped)
    }

    /// Starts the operator and waits until it says that it is ready.
    fn start_operator(&self) -> Outcome<Child> {
        let port = ports::free(1)?.first().copied().unwrap_or_default();
        let address = format!("127.0.0.1:{port}");
        println!("$ autounseal controller --metrics-addr {address} &");
        let mut command = self.here(self.stage.command(&self.stage.operator));
        command
            .args(["controller", "--metrics-addr", &address])
            .stdin(Stdio::null());
        process::log_to(&mut command, &self.operator_log())?;
        let started = Instant::now();
        let mut operator = self.session.spawn(&mut command)?;
        while http::ask(port, "GET", "/readyz", &[], "") != Some(200) {
            self.session.check()?;
            let ended = operator.try_wait().doing("look after the operator")?;
            if ended.is_some() || started.elapsed() > Duration::from_secs(30) {
                return Err(format!(
                    "the operator did not become ready. Its last lines were:\n{}",
                    process::tail(&self.operator_log(), 30)
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("   ready after {:.2} s", started.elapsed().as_secs_f32());
        Ok(operator)
    }

    fn operator_log(&self) -> PathBuf {
        self.folder.join("operator.log")
    }

    /// Compares the Secret with what was wrapped, as bytes.
    fn compare(&self) -> Outcome<()> {
        let template = "go-template={{index .data \"master.key\" | base64decode}}";
        let mut command = self.here(self.stage.plane.kubectl());
        command.args(["-n", NAMESPACE, "get", "secret", SECRET, "-o", template]);
        let delivered = command.output().doing("run kubectl")?.stdout;
        let original = std::fs::read(self.folder.join("root.key")).doing("read root.key")?;
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
            self.session.check()?;
            match self.compare() {
                Ok(()) => return Ok(deleted.elapsed()),
                Err(failure) if deleted.elapsed() > Duration::from_secs(20) => return Err(failure),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn kubectl(&self, arguments: &[&str]) -> Outcome<()> {
        println!("$ kubectl -n {NAMESPACE} {}", arguments.join(" "));
        let mut command = self.here(self.stage.plane.kubectl());
        self.must(
            command.args(["-n", NAMESPACE]).args(arguments),
            &format!("`kubectl {}`", arguments.join(" ")),
        )
    }

    fn must(&self, command: &mut Command, what: &str) -> Outcome<()> {
        let status = self.session.run(command)?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{what} failed ({status}).").into())
        }
    }

    fn here(&self, mut command: Command) -> Command {
        command.current_dir(&self.folder);
        command
    }

    fn write(&self, name: &str, text: &str) -> Outcome<()> {
        std::fs::write(self.folder.join(name), text).doing(format!("write {name}"))
    }

    fn show_file(&self, name: &str) -> Outcome<()> {
        let text =
            std::fs::read_to_string(Path::new(&self.folder).join(name)).doing(format!("read {name}"))?;
        print!("$ cat {name}\n{text}");
        Ok(())
    }
}

fn say(text: &str) {
    println!("\n== {text}");
}

/// The operator's own identity may open a brought key in this namespace because a cluster admin grants the key.
fn namespace(key: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    autounseal.dev/operator-identity: allowed
  annotations:
    autounseal.dev/operator-identity-grants: {key}
"
    )
}

/// All that `wrap` needs to know.
fn seals(key: &str) -> String {
    format!(
        "apiVersion: autounseal.dev/v1alpha1
kind: SealConfig
metadata:
  name: {NAME}
  namespace: {NAMESPACE}
spec:
  seals:
  - name: aws
    awskms:
      kmsKeyID: {key}
      region: us-east-1
"
    )
}

/// The same with the key that `wrap` printed and a target.
fn seal_config(key: &str, wrapped: &str) -> String {
    let head = if wrapped.lines().any(|line| line.starts_with("wrapped:")) {
        ""
    } else {
        "    wrapped:\n"
    };
    let entries: String = wrapped
        .lines()
        .map(|line| ["    ", line, "\n"].concat())
        .collect();
    format!(
        "{}  keys:
  - name: master
{head}{entries}  targets:
  - name: app
    secret:
      name: {SECRET}
      data:
      - name: master.key
        key: {{name: master}}
",
        seals(key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrap_prints_lands_below_the_key() {
        let pasted = seal_config(
            "arn",
            "wrapped:
- seal: aws
  inline: QUJD
",
        );
        assert!(pasted.contains(
            "  - name: master
    wrapped:
    - seal: aws
      inline: QUJD
  targets:
"
        ));
        assert_eq!(
            pasted,
            seal_config(
                "arn",
                "- seal: aws
  inline: QUJD
"
            )
        );
    }
}
