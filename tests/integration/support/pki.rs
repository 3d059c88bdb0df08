//! Certificates of a throwaway CA.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::stage::unique;

/// Makes `ca.crt`, and for each further word `WORD.crt` and `WORD.key` for the names after it.
const SCRIPT: &str = r#"
import datetime, pathlib, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
folder, now = pathlib.Path(sys.argv[1]), datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
def name(text): return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
def start(subject, key):
    return (x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("test CA")).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day))
ca = ec.generate_private_key(ec.SECP256R1())
def signed(builder, path):
    (folder / path).write_bytes(builder.sign(ca, hashes.SHA256()).public_bytes(form.Encoding.PEM))
signed(start("test CA", ca).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True), "ca.crt")
for host in sys.argv[2:]:
    key = ec.generate_private_key(ec.SECP256R1())
    signed(start(host, key).add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False), host + ".crt")
    (folder / (host + ".key")).write_bytes(
        key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
"#;

/// A throwaway CA and what it signed; removed when dropped.
pub struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Signs a certificate for each host.
    pub fn new(hosts: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("autounseal-pki-{}", unique()));
        std::fs::create_dir(&folder).unwrap();
        let python = std::env::var("AUTOUNSEAL_OCI_PYTHON").expect("set by cargo xtask cluster");
        let status = Command::new(python)
            .args(["-c", SCRIPT])
            .arg(&folder)
            .args(hosts)
            .status();
        assert!(status.unwrap().success(), "the certificates were not made");
        Self { folder }
    }

    /// The CA as PEM.
    pub fn ca(&self) -> Vec<u8> {
        std::fs::read(self.folder.join("ca.crt")).unwrap()
    }

    /// The file that holds it.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The files of a host's certificate and its key.
    pub fn files(&self, host: &str) -> (PathBuf, PathBuf) {
        let file = |kind: &str| Path::new(&self.folder).join(format!("{host}.{kind}"));
        (file("crt"), file("key"))
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
