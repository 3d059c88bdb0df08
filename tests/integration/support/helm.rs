//! Helm itself, and releases of the chart.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    operator::Operator,
    plane::Plane,
    stage::{repository, unique},
};

/// Helm, with nothing of the developer's own settings.
pub fn helm(arguments: &[&str]) -> (bool, String) {
    let own = logs().join("helm");
    ran(Command::new(program("AUTOUNSEAL_HELM"))
        .args(arguments)
        .env("HELM_CACHE_HOME", own.join("cache"))
        .env("HELM_CONFIG_HOME", own.join("config"))
        .env("HELM_DATA_HOME", own.join("data")))
}

/// kubectl.
pub fn kubectl(arguments: &[&str]) -> (bool, String) {
    ran(Command::new(program("AUTOUNSEAL_KUBECTL")).args(arguments))
}

/// Where the chart lies.
pub fn chart() -> String {
    repository("charts/auto-unseal-operator").display().to_string()
}

/// A file for one test, gone with the control plane.
pub fn file(content: &str) -> String {
    let path = logs().join(format!("chart-{}", unique()));
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// A folder for one test, gone with the control plane.
pub fn folder() -> PathBuf {
    let path = logs().join(format!("folder-{}", unique()));
    std::fs::create_dir(&path).unwrap();
    path
}

fn logs() -> PathBuf {
    std::env::var("AUTOUNSEAL_CLUSTER_LOGS").map_or_else(|_| std::env::temp_dir(), PathBuf::from)
}

/// A program that `cargo xtask cluster` names.
pub fn program(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is set by cargo xtask cluster"))
}

fn ran(command: &mut Command) -> (bool, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// The chart, installed for real in a namespace of its own; uninstalled when dropped.
pub struct Release {
    plane: Plane,
    /// Its namespace and its name.
    pub namespace: String,
    /// What Helm printed: the notes.
    pub notes: String,
}

impl Release {
    /// Installs it with these values. The CRDs are there already, and no image is ever pulled.
    pub async fn install(plane: &Plane, mut values: Value) -> Self {
        let namespace = format!("chart-{}", unique());
        plane
            .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
            .await;
        values["image"] = json!({"repository": "registry.example.com/auto-unseal-operator"});
        values["crds"] = json!({"install": false});
        let values = file(&values.to_string());
        let (chart, words) = (chart(), ["--namespace", namespace.as_str(), "--values", &values]);
        let (fine, notes) = helm(&[&["install", &namespace, &chart], words.as_slice()].concat());
        assert!(fine, "{notes}");
        Self {
            plane: plane.clone(),
            namespace,
            notes,
        }
    }

    /// One that is installed already, in the namespace of its name.
    pub fn found(plane: &Plane, name: &str) -> Self {
        Self {
            plane: plane.clone(),
            namespace: name.to_owned(),
            notes: String::new(),
        }
    }

    /// The Deployment.
    pub async fn deployment(&self) -> Value {
        let mut found = self.plane.list("Deployment", &self.namespace).await;
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    /// A kubeconfig of the chart's ServiceAccount.
    pub async fn kubeconfig(&self) -> String {
        let deployment = self.deployment().await;
        let account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
            .as_str()
            .unwrap();
        let text = std::fs::read_to_string(std::env::var("KUBECONFIG").unwrap()).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["users"][0]["user"] = json!({"token": self.plane.token(&self.namespace, account).await});
        file(&config.to_string())
    }

    /// The operator as the Deployment would run it: its flags but for the port, and its ServiceAccount.
    pub async fn operator(&self) -> Operator {
        let deployment = self.deployment().await;
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let arguments = container["args"].as_array().unwrap();
        let flags = arguments.iter().map(|argument| argument.as_str().unwrap());
        let mut flags: Vec<String> = flags.map(str::to_owned).collect();
        assert_eq!(flags.remove(0), "controller");
        flags.retain(|flag| !flag.starts_with("--metrics-addr="));
        Operator::new()
            .with_flags(flags)
            .env("KUBECONFIG", self.kubeconfig().await)
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let (fine, said) = helm(&["uninstall", &self.namespace, "--namespace", &self.namespace]);
        if !fine {
            eprintln!("{said}");
        }
    }
}
