//! What a throwaway control plane is trusted by, and whom it trusts: made anew for each.

use std::io::Read;
use std::path::Path;
use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::python::Environment;
use crate::session::Session;

/// The admin's kubeconfig, in the folder given to [`make`].
pub const KUBECONFIG: &str = "kubeconfig";
/// An empty file that stands in for `~/.aws`.
pub const NO_AWS_CONFIG: &str = "aws-config";

/// Writes certificates, the admin's token and the kubeconfig into a folder.
pub fn make(session: &Session, python: &Environment, folder: &Path, port: u16) -> Outcome<()> {
    let mut command = Command::new(python.python());
    command.args(["-c", include_str!("pki.py")]).arg(folder);
    session.run_logged(&mut command, "making certificates", &folder.join("pki.log"))?;
    let token = random_token()?;
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).doing(format!("write {name} for the cluster"))
    };
    write("tokens.csv", format!("{token},admin,admin,\"system:masters\"\n"))?;
    write(KUBECONFIG, kubeconfig(&folder.join("ca.crt"), port, &token))?;
    write(NO_AWS_CONFIG, String::new())
}

fn random_token() -> Outcome<String> {
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .doing("read /dev/urandom")?;
    Ok(bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

/// A kubeconfig in JSON, which is YAML too and needs no quoting rules of our own.
fn kubeconfig(authority: &Path, port: u16, token: &str) -> String {
    let server = format!("https://127.0.0.1:{port}");
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "throwaway",
        "clusters": [{"name": "throwaway", "cluster": {"server": server, "certificate-authority": authority}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "throwaway", "context": {"cluster": "throwaway", "user": "admin"}}],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_trusts_the_given_authority_only() {
        let text = kubeconfig(Path::new("/c/ca.crt"), 6443, "t");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value["clusters"][0]["cluster"]["server"],
            "https://127.0.0.1:6443"
        );
        assert_eq!(
            value["clusters"][0]["cluster"]["certificate-authority"],
            "/c/ca.crt"
        );
        assert!(!text.contains("insecure"));
    }

    #[test]
    fn two_tokens_differ() {
        assert_ne!(random_token().unwrap(), random_token().unwrap());
    }
}
