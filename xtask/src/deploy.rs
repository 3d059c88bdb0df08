//! `deploy/`: plain manifests, rendered from the chart. What all of them share is the base, the rest is an overlay.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::repository;

const FOLDER: &str = "deploy";
const CHART: &str = "charts/auto-unseal-operator";
/// Release and namespace.
const NAME: &str = "auto-unseal-operator";
/// Overlays, each with its file in `deploy/values/`.
const OVERLAYS: [&str; 2] = ["namespaced", "cluster-wide"];
const HEAD: &str = "# Rendered from the chart by cargo xtask gen.\n";

/// Renders them anew with this Helm.
pub fn write(helm: &Path) -> Outcome<()> {
    let mut rendered = Vec::new();
    for overlay in OVERLAYS {
        rendered.push(render(helm, overlay)?);
    }
    let shared: Vec<&String> = rendered[0]
        .iter()
        .filter(|object| rendered.iter().all(|all| all.contains(object)))
        .collect();
    put("base", &shared, None)?;
    for (overlay, objects) in OVERLAYS.iter().zip(&rendered) {
        let own: Vec<_> = objects.iter().filter(|object| !shared.contains(object)).collect();
        put(&format!("overlays/{overlay}"), &own, Some("../../base"))?;
    }
    Ok(())
}

fn render(helm: &Path, overlay: &str) -> Outcome<Vec<String>> {
    let root = repository::root();
    let output = Command::new(helm)
        .args(["template", NAME])
        .arg(root.join(CHART))
        .args(["--namespace", NAME, "--values"])
        .arg(root.join(FOLDER).join("values").join(format!("{overlay}.yaml")))
        .output()
        .doing("run helm")?;
    if !output.status.success() {
        return Err(format!("helm: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(objects(&String::from_utf8_lossy(&output.stdout)))
}

/// The objects of a stream, without what only Helm needs.
fn objects(stream: &str) -> Vec<String> {
    let helms = [
        "# Source:",
        "helm.sh/chart:",
        "app.kubernetes.io/managed-by: Helm",
    ];
    let documents = stream.split("\n---\n").map(|document| {
        let document = document.trim_start_matches("---\n").trim_end();
        let lines = document
            .lines()
            .filter(|line| !helms.iter().any(|start| line.trim_start().starts_with(start)));
        lines.fold(String::new(), |text, line| text + line + "\n")
    });
    documents
        .filter(|document| {
            document
                .lines()
                .any(|line| !line.is_empty() && !line.starts_with('#'))
        })
        .collect()
}

fn put(place: &str, objects: &[&String], base: Option<&str>) -> Outcome<()> {
    let folder: PathBuf = repository::root().join(FOLDER).join(place);
    std::fs::create_dir_all(&folder).doing(format!("make the folder {}", folder.display()))?;
    let stream = objects
        .iter()
        .fold(HEAD.to_owned(), |text, object| text + "---\n" + object);
    let kustomization = format!(
        "{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{}objects.yaml]\n",
        base.map(|base| format!("{base}, ")).unwrap_or_default()
    );
    for (name, content) in [("objects.yaml", stream), ("kustomization.yaml", kustomization)] {
        let path = folder.join(name);
        std::fs::write(&path, content).doing(format!("write {}", path.display()))?;
        println!("wrote {FOLDER}/{place}/{name}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_taken_apart_and_helms_own_words_are_left_out() {
        let stream = "---\n# Source: a/b.yaml\nkind: A\nmetadata:\n  labels:\n    helm.sh/chart: x-1\n    app.kubernetes.io/managed-by: \
                      Helm\n    kept: \"yes\"\n---\n# Source: a/empty.yaml\n---\nkind: B\n";
        let expected = ["kind: A\nmetadata:\n  labels:\n    kept: \"yes\"\n", "kind: B\n"];
        assert_eq!(objects(stream), expected);
    }
}
