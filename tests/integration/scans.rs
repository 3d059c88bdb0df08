//! What programs of others make of the chart: alerts are evaluated by Prometheus' own tool, manifests held against the
//! apiserver's own schemas, and each opinion of a scanner has its answer in docs/scan-findings.md.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    chart::{VALUES, of_kind, render, values},
    support::{
        helm::{folder, program},
        plane::Plane,
        stage::repository,
    },
};

/// Runs a program of `cargo xtask cluster` in a folder; whether it was content, and what it printed.
fn run(variable: &str, folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program(variable))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (
        output.status.success(),
        said + &String::from_utf8_lossy(&output.stderr),
    )
}

#[test]
fn every_alert_fires_when_it_should_and_not_before() {
    let objects = render("r", "ops", &values("everything"));
    let mut rules = of_kind(&objects, "PrometheusRule")[0]["spec"].to_string();
    // The values name the release otherwise.
    rules = rules.replace("unseal-the-first", "r-auto-unseal-operator");
    let folder = folder();
    std::fs::write(folder.join("rules.yaml"), &rules).unwrap();
    let text = std::fs::read_to_string(repository("tests/alerts.yaml")).unwrap();
    std::fs::write(folder.join("alerts.yaml"), &text).unwrap();
    let (fine, said) = run("AUTOUNSEAL_PROMTOOL", &folder, &["test", "rules", "alerts.yaml"]);
    assert!(fine, "{said}");

    // Each is tried both ways.
    let tried: Value = serde_yaml::from_str(&text).unwrap();
    let tries: Vec<_> = tried["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap())
        .collect();
    let rules: Value = serde_json::from_str(&rules).unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let of_rule = || tries.iter().filter(|one| one["alertname"] == rule["alert"]);
        let fires = |one: &&&Value| !one["exp_alerts"].as_array().unwrap().is_empty();
        let (loud, silent) = (
            of_rule().filter(fires).count(),
            of_rule().filter(|one| !fires(one)).count(),
        );
        assert!(
            loud > 0 && silent > 0,
            "{} is not tried both ways in tests/alerts.yaml",
            rule["alert"]
        );
    }
}

/// A schema of the apiserver's OpenAPI as kubeconform wants it: other schemas beside it, and no field that it does not name.
fn strict(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(strict),
        Value::Object(entries) => {
            if let Some(Value::String(reference)) = entries.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", "#/definitions/");
            }
            let open = entries.contains_key("additionalProperties")
                || entries.contains_key("x-kubernetes-preserve-unknown-fields");
            if entries.get("properties").is_some_and(Value::is_object) && !open {
                entries.insert("additionalProperties".into(), json!(false));
            }
            entries.values_mut().for_each(strict);
        }
        _ => {}
    }
}

/// Writes the apiserver's schema of each of these kinds, by the name under which kubeconform looks for it.
async fn write_schemas(plane: &Plane, kinds: &BTreeSet<String>, folder: &Path) {
    let index: Value = serde_json::from_str(&plane.text("/openapi/v3").await).unwrap();
    for path in index["paths"].as_object().unwrap().values() {
        let path = path["serverRelativeURL"].as_str().unwrap();
        let document: Value = serde_json::from_str(&plane.text(path).await).unwrap();
        let Some(mut all) = document.pointer("/components/schemas").cloned() else {
            continue;
        };
        strict(&mut all);
        for schema in all.as_object().unwrap().values() {
            let all_kinds = schema["x-kubernetes-group-version-kind"].as_array();
            let is_wanted = |kind: &&Value| kinds.contains(kind["kind"].as_str().unwrap());
            for kind in all_kinds.into_iter().flatten().filter(is_wanted) {
                let text = |field: &str| kind[field].as_str().unwrap_or_default().to_lowercase();
                let mut own = schema.clone();
                own["definitions"] = all.clone();
                // kubeconform takes the version for the group where there is none.
                let group = if text("group").is_empty() {
                    text("version")
                } else {
                    text("group")
                };
                let name = format!("{group}_{}_{}.json", text("version"), text("kind"));
                std::fs::write(folder.join(name), own.to_string()).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubeconform_finds_no_field_that_the_apiserver_does_not_know() {
    let (plane, folder) = (Plane::connect().await, folder());
    let schemas = folder.join("schemas");
    std::fs::create_dir(&schemas).unwrap();
    let rendered = VALUES
        .iter()
        .map(|name| (name, render("r", "ops", &values(name))));
    let rendered: Vec<_> = rendered.collect();
    let kind_of = |object: &Value| object["kind"].as_str().unwrap().to_owned();
    let mut kinds: BTreeSet<_> = rendered
        .iter()
        .flat_map(|(_, objects)| objects.iter().map(kind_of))
        .collect();
    kinds.extend(["Namespace", "SealConfig", "ManagedKey"].map(ToOwned::to_owned));
    write_schemas(&plane, &kinds, &schemas).await;
    let template = format!(
        "{}/{{{{.Group}}}}_{{{{.ResourceAPIVersion}}}}_{{{{.ResourceKind}}}}.json",
        schemas.display()
    );
    let ask = |file: &str| {
        let skip = "ServiceMonitor,PodMonitor,PrometheusRule";
        let arguments = [
            "-strict",
            "-summary",
            "-output",
            "json",
            "-skip",
            skip,
            "-schema-location",
            &template,
            file,
        ];
        run("AUTOUNSEAL_KUBECONFORM", &folder, &arguments)
    };
    let valid = |said: &str| {
        let summary: Value = serde_json::from_str(said).unwrap();
        summary["summary"]["valid"].as_u64().unwrap()
    };
    for (name, objects) in &rendered {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let path = folder.join("chart.json");
        std::fs::write(&path, list.to_string()).unwrap();
        let (fine, said) = ask(&path.display().to_string());
        assert!(fine && valid(&said) > 5, "{name}: {said}");
    }
    let mut held = 0;
    for entry in std::fs::read_dir(repository("examples")).unwrap() {
        let path = entry.unwrap().path();
        let (fine, said) = ask(&path.display().to_string());
        assert!(fine, "{said}");
        held += valid(&said);
    }
    assert!(held > 10, "{held}");

    // And it does look: of each kind of mistake one.
    for (object, what) in [
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 1}}),
            "port",
        ),
        (
            json!({"apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig", "metadata": {"name": "x"}, "spec": {"seal": []}}),
            "seal",
        ),
        (
            json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"}}),
            "schema",
        ),
    ] {
        let path = folder.join("wrong.json");
        std::fs::write(&path, object.to_string()).unwrap();
        let (fine, said) = ask(&path.display().to_string());
        assert!(!fine && said.contains(what), "{object}: {said}");
    }
}

#[test]
fn every_opinion_of_kube_score_has_its_answer() {
    let mut found = BTreeSet::new();
    let folder = folder();
    for name in VALUES {
        let objects = render("r", "ops", &values(name));
        let stream: Vec<_> = objects.iter().map(Value::to_string).collect();
        std::fs::write(folder.join("chart.yaml"), stream.join("\n---\n")).unwrap();
        let (_, said) = run(
            "AUTOUNSEAL_KUBE_SCORE",
            &folder,
            &["score", "-o", "json", "chart.yaml"],
        );
        let scores: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
        let checks = scores
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|one| one["checks"].as_array().unwrap());
        // 10 is well, 7 almost; less is a warning or worse.
        let poor = checks.filter(|one| one["skipped"] == false && one["grade"].as_u64().unwrap() < 7);
        found.extend(poor.map(|one| one["check"]["id"].as_str().unwrap().to_owned()));
    }
    let page = std::fs::read_to_string(repository("docs/scan-findings.md")).unwrap();
    let answered: BTreeSet<String> = page
        .lines()
        .filter(|line| line.starts_with("| `") && line.contains("kube-score"))
        .flat_map(|line| line.split('|').nth(1).unwrap().split('`').skip(1).step_by(2))
        .filter(|id| !id.starts_with("CKV") && *id != "Always")
        .map(str::to_owned)
        .collect();
    assert_eq!(
        found, answered,
        "docs/scan-findings.md answers what is found, and nothing else"
    );
}
