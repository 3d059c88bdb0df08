//! What bank-vaults keeps is brought by the command line, pasted, and unseals the real Vault.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    binary,
    fleet::{plain, pod, spec, told},
    kms::Context,
    needle::Needle,
    scene::Scene,
    server::{Disk, Product},
    stage::unique,
};

/// Runs the command line in an empty environment: it needs no identity. The keys that it prints.
fn import(arguments: &[&str], input: &[u8], needles: &[Needle]) -> Value {
    let mut child = Command::new(binary())
        .args(["import", "bank-vaults"])
        .args(arguments)
        .args(["-o", "json"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    for needle in needles {
        assert!(needle.found_in(&done.stdout).is_none() && needle.found_in(&done.stderr).is_none());
    }
    let printed: Value = serde_json::from_slice(&done.stdout).unwrap();
    printed["keys"].clone()
}

struct Bucket(PathBuf);

impl Bucket {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("autounseal-bucket-{}", unique()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, content: &[u8]) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bank_vaults_keeps_unseals_a_vault_once_it_is_pasted() {
    let scene = Scene::new("bank-vaults").await;
    let stage = &scene.stage;
    let _running = scene
        .operator()
        .flags([
            "--unseal-allow-loopback",
            "--insecure-unseal-namespaces",
            &stage.namespace,
        ])
        .start();
    let disk = Disk::new(Product::Vault);
    let mut server = disk.start(&[], &[]);
    let (shares, token) = server.shamir(5, 3);
    let address = server.address();
    let needles: Vec<Needle> = shares
        .iter()
        .chain([&token])
        .map(|text| Needle::new("a share or the token", text.as_bytes()))
        .collect();
    let context: Context = [("Tool".to_owned(), "bank-vaults".to_owned())].into();
    let bucket = Bucket::new();
    // Each value is the hexadecimal text of a share, encrypted for itself, with nothing around it.
    let other = scene.kms.key();
    for (number, share) in shares.iter().enumerate() {
        let name = format!("vault-unseal-{number}");
        let eu = scene.kms.encrypt(&scene.key, share.as_bytes(), &context);
        bucket.put(&format!("aws/{name}"), &eu);
        // A second region, with a prefix of its own.
        let us = scene.kms.encrypt(&other, share.as_bytes(), &context);
        bucket.put(&format!("other/prod/{name}"), &us);
    }
    let root = scene.kms.encrypt(&scene.key, token.as_bytes(), &context);
    bucket.put("aws/vault-root", &root);
    bucket.put("aws/vault-test", b"vault-test");
    let both = bucket.0.to_str().unwrap().to_owned();
    let alone = format!("{both}/aws");

    let unseals = async |name: &str, keys: Value| {
        let mut config = plain(spec(&scene, &[], name, address.port()));
        let second = json!({"name": "other", "awskms": {
            "kmsKeyID": other.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}});
        config["seals"].as_array_mut().unwrap().push(second);
        config["keys"] = keys;
        stage.apply(name, &config).await;
        pod(&scene, name, name, address.ip()).await;
        told(&scene, name, "True", "Ready").await;
        stage.ready(name).await;
        server.unsealed();
        let sealed = server.seal(&token);
        assert!(sealed.is_null(), "{sealed}");
        stage.plane.delete("SealConfig", &stage.namespace, name).await;
    };
    let mut unseals = unseals;

    let keys = import(&["--from", &alone, "--seal", "aws"], b"", &needles);
    assert_eq!(keys.as_array().unwrap().len(), 6);
    unseals("one", keys).await;
    let keys = import(&["--from", &both], b"", &needles);
    assert_eq!(keys[0]["wrapped"].as_array().unwrap().len(), 2);
    unseals("two", keys).await;

    // Mode k8s: the operator takes the values out of the Secret itself.
    let values: Vec<(String, &[u8])> = shares
        .iter()
        .enumerate()
        .map(|(number, share)| (format!("vault-unseal-{number}"), share.as_bytes()))
        .collect();
    let values: Vec<(&str, &[u8])> = values
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    stage.secret_of("vault-unseal-keys", &values).await;
    let secret = stage.whole_secret("vault-unseal-keys").await.to_string();
    let keys = import(&["--from", "-"], secret.as_bytes(), &needles);
    unseals("three", keys).await;
}
