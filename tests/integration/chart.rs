//! The Helm chart: what it renders is accepted, what makes no sense is refused, and what it grants is enough and no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    helm::{Release, chart, file, helm, kubectl},
    kms::{Context, Key, Kms},
    plane::{Plane, eventually},
    stage::{Stage, condition, random, repository, simple, unique},
    sts::Sts,
};

const LABEL: &str = "autounseal.dev/operator-identity";
const GRANTS: &str = "autounseal.dev/operator-identity-grants";

/// The files of values that the chart is tried with.
pub const VALUES: &[&str] = &["tenants", "cluster-wide", "everything"];

/// The path of one of them.
pub fn values(name: &str) -> String {
    let path = repository("charts/auto-unseal-operator/ci").join(format!("{name}-values.yaml"));
    path.display().to_string()
}

/// The objects that the chart makes of a file of values.
pub fn render(release: &str, namespace: &str, values: &str) -> Vec<Value> {
    let (fine, text) = helm(&[
        "template",
        release,
        &chart(),
        "--namespace",
        namespace,
        "--values",
        values,
    ]);
    assert!(fine, "{text}");
    objects_of(&text)
}

/// The objects of a stream of YAML.
pub fn objects_of(stream: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(stream)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .filter(|object: &Value| !object.is_null())
        .collect()
}

/// Those of one kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

async fn namespace(plane: &Plane, name: &str, labels: Value) {
    plane
        .apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_of_the_chart_is_accepted_by_the_apiserver() {
    let plane = Plane::connect().await;
    for name in ["billing", "payments"] {
        namespace(&plane, name, json!({})).await;
    }
    let home = format!("chart-objects-{}", unique());
    let enforce = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    namespace(&plane, &home, enforce).await;
    let longest = "r".repeat(53);
    for name in VALUES {
        let (fine, said) = helm(&["lint", &chart(), "--strict", "--values", &values(name)]);
        assert!(fine, "{name}: {said}");
        for release in ["autounseal", &longest] {
            let objects = render(release, &home, &values(name));
            // The Prometheus operator's kinds are not known to this apiserver.
            let known: Vec<_> = objects
                .iter()
                .filter(|object| {
                    !object["apiVersion"]
                        .as_str()
                        .unwrap()
                        .starts_with("monitoring.coreos.com/")
                })
                .collect();
            let list = file(&json!({"apiVersion": "v1", "kind": "List", "items": known}).to_string());
            let (fine, said) = kubectl(&[
                "apply",
                "--server-side",
                "--dry-run=server",
                "--validate=strict",
                "--force-conflicts",
                "--field-manager=chart",
                "-f",
                &list,
            ]);
            assert!(fine, "{name}: {said}");

            // The pod, under the restricted standard unless it asks for the node's network.
            let deployment = of_kind(&objects, "Deployment")[0];
            let template = &deployment["spec"]["template"];
            let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]});
            pod["metadata"] = json!({"namespace": home, "name": format!("p{}", unique()), "labels": template["metadata"]["labels"]});
            pod["spec"]["priorityClassName"] = Value::Null;
            if pod["spec"]["hostNetwork"] == true {
                assert!(
                    plane
                        .try_create(&pod)
                        .await
                        .unwrap_err()
                        .message
                        .contains("hostNetwork")
                );
                pod["spec"]["hostNetwork"] = json!(false);
            }
            plane.create(&pod).await;
        }
    }
}

#[test]
fn everything_that_can_be_asked_for_is_rendered() {
    let objects = render("r", "ops", &values("everything"));
    let mut kinds: Vec<_> = objects
        .iter()
        .map(|object| object["kind"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    let expected = [
        // Two of them are extraObjects.
        "ConfigMap",
        "ConfigMap",
        "ConfigMap",
        "ConfigMap",
        "CustomResourceDefinition",
        "CustomResourceDefinition",
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PodMonitor",
        "PrometheusRule",
        "Role",
        "Role",
        "Role",
        "RoleBinding",
        "RoleBinding",
        "RoleBinding",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingAdmissionPolicyBinding",
    ];
    assert_eq!(kinds, expected);
    // Monitors find what they select, and leave a SealConfig's namespace as it is.
    let labels = |object: &Value| object["metadata"]["labels"].clone();
    for (monitor, target, endpoints) in [
        ("ServiceMonitor", "Service", "endpoints"),
        ("PodMonitor", "Deployment", "podMetricsEndpoints"),
    ] {
        let monitor = of_kind(&objects, monitor)[0];
        let selected = labels(of_kind(&objects, target)[0]);
        for (name, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&selected[name], value);
        }
        assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
        assert_eq!(monitor["spec"][endpoints][0]["port"], "metrics");
        assert_eq!(monitor["spec"][endpoints][0]["honorLabels"], true);
    }
    // The CRDs are those of crds/ but for what Helm needs; they are kept unless told otherwise.
    let definitions = |values: &str| {
        let objects = render("r", "ops", values);
        let found = of_kind(&objects, "CustomResourceDefinition");
        let named = found
            .into_iter()
            .map(|crd| (crd["metadata"]["name"].to_string(), crd.clone()));
        named.collect::<std::collections::BTreeMap<_, _>>()
    };
    let text = std::fs::read_to_string(repository("crds/autounseal.dev.yaml")).unwrap();
    let sources: Vec<Value> = serde_yaml::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect();
    let (kept, others) = (
        definitions(&values("tenants")),
        definitions(&values("everything")),
    );
    assert_eq!((kept.len(), others.len()), (sources.len(), sources.len()));
    for source in sources {
        let name = source["metadata"]["name"].to_string();
        assert_eq!(kept[&name]["spec"], source["spec"]);
        assert_eq!(
            kept[&name]["metadata"]["annotations"],
            json!({"helm.sh/resource-policy": "keep"})
        );
        assert_eq!(others[&name]["metadata"].get("annotations"), None);
    }
}

/// Writes whole numbers as such: kustomize makes 0 of 0.0.
fn whole(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(whole),
        Value::Object(entries) => entries.values_mut().for_each(whole),
        Value::Number(number) if number.is_f64() => {
            let text = number.to_string();
            if let Ok(number) = text.trim_end_matches(".0").parse::<i64>() {
                *value = json!(number);
            }
        }
        _ => {}
    }
}

/// Every metric that the operator tells of, with the labels that it may have.
fn told() -> BTreeMap<String, BTreeSet<String>> {
    use autounseal::{
        provider::Observer,
        telemetry::{
            metrics::Metrics,
            objects::{Figures, ObjectState},
        },
    };
    let metrics = Metrics::new();
    metrics.reconciled("SealConfig", true, Duration::from_millis(1));
    let state = ObjectState {
        ready: false,
        reason: "AccessDenied",
        figures: Figures {
            seals_unhealthy: 1,
            key_copies_min: Some(1),
            seals_wrapping: 2,
            rotation_due: Some(1),
            pods_sealed: Some(1),
            root_token_since: Some(5),
        },
    };
    metrics.objects.seal_config("n", "a", &state);
    metrics.kms_request("awskms", "Decrypt", "ok", 0.01);
    metrics.credential_expiry("awskms", "irsa", 42);
    metrics.imds_probe("available");
    metrics.unsealed("ok", Duration::from_millis(1));
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let text = metrics.text();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split(',');
        let labels = labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        found.entry(name.to_owned()).or_default().extend(labels);
    }
    found
}

/// Words of an expression or of a template that could name a metric, and those that name a label.
fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .collect()
}

#[test]
fn alerts_and_dashboard_speak_of_metrics_and_labels_that_are_there() {
    let told = told();
    let objects = render("r", "ops", &values("everything"));
    let mut used = Vec::new();
    let rules = of_kind(&objects, "PrometheusRule")[0];
    assert_eq!(rules["metadata"]["labels"]["release"], "prometheus");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for rule in rules["spec"]["groups"][0]["rules"].as_array().unwrap() {
        let annotations = [
            &rule["annotations"]["summary"],
            &rule["annotations"]["description"],
        ];
        assert!(
            annotations.iter().all(|sentence| text(sentence).ends_with('.')),
            "{rule}"
        );
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        used.push((text(&rule["expr"]), text(annotations[0]) + &text(annotations[1])));
    }
    assert_eq!(used.len(), 9);
    let maps = of_kind(&objects, "ConfigMap");
    let map = maps
        .iter()
        .find(|map| map["metadata"]["labels"]["dashboards"] == "yes")
        .unwrap();
    let dashboard: Value =
        serde_json::from_str(map["data"]["auto-unseal-operator.json"].as_str().unwrap()).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let legend = text(&target["legendFormat"]).replace("{{", "$labels.");
            used.push((text(&target["expr"]), legend));
        }
    }
    // What Prometheus itself adds, and the words of its language that stand where labels do.
    let known = ["namespace", "pod", "le"];
    let mut unused: BTreeSet<_> = told.keys().map(String::as_str).collect();
    for (expr, sentences) in &used {
        let metrics: Vec<_> = words(expr)
            .into_iter()
            .filter(|word| word.starts_with("autounseal_"))
            .collect();
        assert!(!metrics.is_empty(), "{expr}");
        let mut labels: BTreeSet<&str> = known.into();
        for metric in &metrics {
            let of_metric = told.get(*metric);
            let of_metric = of_metric.unwrap_or_else(|| panic!("{metric} of {expr} does not exist"));
            labels.extend(of_metric.iter().map(String::as_str));
            unused.remove(metric);
        }
        // Labels in selectors, in `by` and `on`, and in sentences.
        let mut asked: Vec<&str> = Vec::new();
        for part in expr.split('{').skip(1) {
            let selector = part.split('}').next().unwrap();
            asked.extend(selector.split(',').filter_map(|one| words(one).first().copied()));
        }
        for start in [" by (", " on ("] {
            for part in expr.split(start).skip(1) {
                asked.extend(words(part.split(')').next().unwrap()));
            }
        }
        for part in sentences.split("$labels.").skip(1) {
            asked.extend(words(part).first());
        }
        for label in asked {
            assert!(
                labels.contains(label),
                "{label} of {expr} {sentences} does not exist"
            );
        }
    }
    // Nothing is measured that nobody sees.
    unused.retain(|name| {
        !["_sum", "_count", "_created"]
            .iter()
            .any(|end| name.ends_with(end))
    });
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn by_default_nothing_is_granted_cluster_wide_and_nothing_to_people() {
    let objects = render("r", "ops", &values("tenants"));
    assert_eq!(of_kind(&objects, "ClusterRole").len(), 0);
    assert_eq!(of_kind(&objects, "ClusterRoleBinding").len(), 0);
    let mut namespaces: Vec<_> = of_kind(&objects, "RoleBinding")
        .iter()
        .map(|binding| binding["metadata"]["namespace"].as_str().unwrap())
        .collect();
    namespaces.sort_unstable();
    // In its own namespace it may hold its Lease, and nothing else.
    assert_eq!(namespaces, ["billing", "ops", "payments"]);
    let of_home = |object: &&&Value| object["metadata"]["namespace"] == "ops";
    let roles = of_kind(&objects, "Role");
    let home: Vec<_> = roles.iter().filter(of_home).collect();
    assert_eq!(home.len(), 1);
    let lease = json!({"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]});
    let (mut create, mut hold) = (lease.clone(), lease);
    create["verbs"] = json!(["create"]);
    hold["resourceNames"] = json!(["r-auto-unseal-operator"]);
    hold["verbs"] = json!(["get", "update"]);
    assert_eq!(home[0]["rules"], json!([create, hold]));
    for name in VALUES {
        for object in render("r", "ops", &values(name)) {
            let labels = object["metadata"]["labels"].to_string();
            assert!(!labels.contains("aggregate-to"), "{object}");
            for rule in object["rules"].as_array().into_iter().flatten() {
                let text = rule.to_string();
                for word in ["*", "delete", "escalate", "bind", "impersonate", "pods/exec"] {
                    assert!(!text.contains(&format!("\"{word}\"")), "{rule}");
                }
            }
        }
    }
}

#[test]
fn values_that_make_no_sense_are_refused_and_the_reason_is_said() {
    let tenants = values("tenants");
    let given = |flags: &[&str]| {
        let (fine, said) = helm(
            &[
                ["template", "r", &chart(), "--values", &tenants].as_slice(),
                flags,
            ]
            .concat(),
        );
        assert!(!fine, "{flags:?} were taken");
        said
    };
    for (flags, expected) in [
        (
            ["--set", "image.repository="],
            "no container image of auto-unseal-operator is published yet",
        ),
        (
            ["--set", "leaderElect=false"],
            "replicas above 1 need leaderElect: true",
        ),
        (["--set", "clusterWide=true"], "contradict each other"),
        (["--set-json", "tenantNamespaces=[]"], "tenantNamespaces is empty"),
        (
            ["--set-json", "tenantNamespaces=[\"Billing\"]"],
            "tenantNamespaces",
        ),
        (
            ["--set-json", "tenantNamespaces=[\"a\",\"a\"]"],
            "tenantNamespaces",
        ),
        (
            [
                "--set-json",
                "metrics={\"service\":false,\"serviceMonitor\":{\"enabled\":true}}",
            ],
            "metrics.serviceMonitor.enabled needs metrics.service",
        ),
        (["--set", "replicaCount=1"], "'replicaCount' not allowed"),
        (["--set", "image.name=x"], "'name' not allowed"),
        (["--set", "replicas=one"], "replicas"),
        (["--set", "concurrency=0"], "concurrency"),
        (["--set", "kmsRequestsPerSecond=0"], "kmsRequestsPerSecond"),
        (["--set", "image.digest=sha256:1"], "digest"),
        (
            ["--set-json", "admissionPolicies.tokenAudiences=[\"a b\"]"],
            "tokenAudiences",
        ),
        (["--set", "bindingDomain=a/b"], "bindingDomain"),
        (["--set", "log.level=loud"], "log/level"),
        (["--set", "metrics.port=80"], "metrics/port"),
        (
            [
                "--set-json",
                "operatorIdentity.grants={\"billing\":[\"alias/x\"]}",
            ],
            "grants",
        ),
        (
            ["--set-json", "allowedEndpoints=[\"kms.example.com\"]"],
            "allowedEndpoints",
        ),
    ] {
        let said = given(&flags);
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_manifests_are_those_of_the_chart_and_are_accepted() {
    let plane = Plane::connect().await;
    for name in ["auto-unseal-operator", "my-namespace"] {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        namespace(&plane, name, labels).await;
    }
    for overlay in ["namespaced", "cluster-wide"] {
        let folder = repository("deploy/overlays").join(overlay).display().to_string();
        let (fine, said) = kubectl(&["kustomize", &folder]);
        assert!(fine, "{said}");
        let objects = |text: &str| -> BTreeMap<String, Value> {
            serde_yaml::Deserializer::from_str(text)
                .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap())
                .filter(|object| !object.is_null())
                .map(|mut object| {
                    // What only Helm needs, and is left out.
                    let labels = ["metadata", "spec/template/metadata"];
                    for place in labels.map(|place| format!("/{place}/labels")) {
                        if let Some(labels) = object.pointer_mut(&place).and_then(Value::as_object_mut) {
                            labels.remove("helm.sh/chart");
                            labels.remove("app.kubernetes.io/managed-by");
                        }
                    }
                    let name = format!(
                        "{} {} {}",
                        object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]
                    );
                    whole(&mut object);
                    (name, object)
                })
                .collect()
        };
        let values = repository("deploy/values").join(format!("{overlay}.yaml"));
        let name = "auto-unseal-operator";
        let (fine, rendered) = helm(&[
            "template",
            name,
            &chart(),
            "--namespace",
            name,
            "--values",
            &values.display().to_string(),
        ]);
        assert!(fine, "{rendered}");
        assert!(
            objects(&said) == objects(&rendered),
            "deploy/ is stale: run cargo xtask gen"
        );
        let (fine, said) = kubectl(&[
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "--force-conflicts",
            "--field-manager=plain",
            "-k",
            &folder,
        ]);
        assert!(fine, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_applied_by_hand_are_taken_over_only_when_asked_and_stay_at_the_uninstall() {
    let stage = Stage::bare("chart-crds", &json!({})).await;
    let name = stage.namespace.as_str();
    let tenants = format!("tenantNamespaces={{{name}}}");
    let chart = chart();
    let install = [
        "install",
        name,
        &chart,
        "--namespace",
        name,
        "--set",
        "image.repository=registry.example.com/auto-unseal-operator",
        "--set",
        &tenants,
    ];
    let (fine, said) = helm(&install);
    assert!(!fine && said.contains("cannot be imported"), "{said}");
    let (fine, said) = helm(&[install.as_slice(), &["--take-ownership"]].concat());
    assert!(fine, "{said}");
    let definition = "sealconfigs.autounseal.dev";
    let kind = "CustomResourceDefinition";
    let before = stage.plane.get(kind, "", definition).await.unwrap();
    assert_eq!(
        before["metadata"]["annotations"]["meta.helm.sh/release-name"],
        name
    );
    let (fine, said) = helm(&["uninstall", name, "--namespace", name]);
    assert!(fine && said.contains("kept due to the resource policy"), "{said}");
    let after = stage.plane.get(kind, "", definition).await.unwrap();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["metadata"].get("deletionTimestamp"), None);
    assert_eq!(stage.plane.list("Deployment", name).await.len(), 0);
}

/// A spec whose seal takes the identity of the ServiceAccount `app`.
fn by_account(key: &Key, ciphertext: &[u8], secret: &str) -> Value {
    let mut spec = simple(&key.arn, ciphertext, secret);
    spec["seals"][0]["awskms"]["credentials"] = json!({"serviceAccountRef": {"name": "app"}});
    spec
}

async fn account(stage: &Stage) {
    let mut account = stage.object("v1", "ServiceAccount", "app");
    account["metadata"]["annotations"] =
        json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app"});
    stage.plane.apply(&account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_for_a_tenant_the_operator_does_its_job_there_and_can_do_nothing_elsewhere() {
    let (kms, sts) = (Kms::start(), Sts::start());
    let key = kms.key();
    let wrap = |bytes: &[u8]| kms.encrypt(&key, bytes, &Context::new());
    let (tenant, other) = (Stage::new("chart-tenant").await, Stage::new("chart-other").await);
    account(&tenant).await;
    let release = Release::install(&tenant.plane, json!({"tenantNamespaces": [tenant.namespace]})).await;
    for word in ["autounseal doctor", &tenant.namespace, "kubectl rollout status"] {
        assert!(release.notes.contains(word), "{}", release.notes);
    }
    let operator = release
        .operator()
        .await
        .env("AWS_ENDPOINT_URL_KMS", kms.url())
        .env("AWS_ENDPOINT_URL_STS", sts.url());
    let _running = operator.start();

    let (first, second) = (random(32), random(32));
    tenant
        .apply("static", &simple(&key.arn, &wrap(&first), "static"))
        .await;
    tenant
        .apply("account", &by_account(&key, &wrap(&second), "account"))
        .await;
    other
        .apply("static", &simple(&key.arn, &wrap(&first), "static"))
        .await;
    for (name, bytes) in [("static", &first), ("account", &second)] {
        tenant.delivered(name, &[("root", bytes)]).await;
        tenant.ready(name).await;
        let spoil = json!({"data": {"root": BASE64.encode(b"spoilt")}});
        tenant
            .plane
            .patch("Secret", &tenant.namespace, name, &spoil)
            .await;
        tenant.delivered(name, &[("root", bytes)]).await;
        eventually("an event", async || {
            let events = tenant.events(name).await;
            let told = events.iter().any(|event| event.contains("Normal"));
            told.then_some(()).ok_or_else(|| format!("{events:?}"))
        })
        .await;
    }
    assert!(
        sts.calls()
            .iter()
            .any(|call| call.action == "AssumeRoleWithWebIdentity")
    );

    // Nobody served the other namespace, and with the operator's token nobody could.
    assert_eq!(other.secret("static").await, None);
    let untouched = condition(&other.config("static").await, "Ready");
    assert_eq!(untouched["reason"], "Pending");
    let kubeconfig = release.kubeconfig().await;
    let may = |words: &[&str]| {
        let (fine, said) = kubectl(&[&["--kubeconfig", &kubeconfig, "auth", "can-i"], words].concat());
        assert_eq!(fine, said.trim_end().ends_with("yes"), "{said}");
        fine
    };
    let (here, there) = (
        ["--namespace", tenant.namespace.as_str()],
        ["--namespace", other.namespace.as_str()],
    );
    let home = ["--namespace", release.namespace.as_str()];
    assert!(
        may(&["get", "secrets", here[0], here[1]]),
        "the question is asked well"
    );
    let (_, said) = kubectl(&["--kubeconfig", &kubeconfig, "get", "secrets", there[0], there[1]]);
    assert!(said.contains("Forbidden"), "{said}");
    for place in [there, home] {
        for (verb, resource) in [
            ("get", "secrets"),
            ("list", "secrets"),
            ("patch", "secrets"),
            ("create", "serviceaccounts/token"),
            ("patch", "deployments.apps"),
            ("create", "pods/eviction"),
            ("get", "sealconfigs.autounseal.dev"),
        ] {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let subresource = format!("--subresource={subresource}");
            assert!(
                !may(&[verb, resource, &subresource, place[0], place[1]]),
                "{verb} {resource} in {place:?}"
            );
        }
    }
    for words in [
        ["list", "secrets", "--all-namespaces"].as_slice(),
        &["list", "namespaces"],
        &["delete", "secrets", here[0], here[1]],
        &["patch", "sealconfigs.autounseal.dev", here[0], here[1]],
        &["create", "pods", here[0], here[1]],
        &["create", "pods", "--subresource=exec", here[0], here[1]],
        &[
            "create",
            "rolebindings.rbac.authorization.k8s.io",
            here[0],
            here[1],
        ],
        &["grant", "operatoridentities.autounseal.dev"],
    ] {
        assert!(!may(words), "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_cluster_wide_the_operator_serves_every_namespace_and_heeds_labels() {
    let kms = Kms::start();
    let key = kms.key();
    let class = format!("c{}", unique());
    let of_class = |mut spec: Value| {
        spec["controllerClass"] = json!(class);
        spec
    };
    let (one, two) = (Stage::new("chart-one").await, Stage::new("chart-two").await);
    let release = Release::install(
        &one.plane,
        json!({"clusterWide": true, "controllerClass": class, "rights": {"serviceAccountTokens": false, "restarts": false}}),
    )
    .await;
    assert!(
        release.notes.contains("WARNING: clusterWide is true"),
        "{}",
        release.notes
    );
    let operator = release.operator().await.env("AWS_ENDPOINT_URL_KMS", kms.url());
    let _running = operator.start();
    let bytes = random(32);
    let wrapped = kms.encrypt(&key, &bytes, &Context::new());
    for stage in [&one, &two] {
        stage
            .apply("static", &of_class(simple(&key.arn, &wrapped, "static")))
            .await;
        stage.delivered("static", &[("root", &bytes)]).await;
        stage.ready("static").await;
    }
    // Without credentials: the operator's own identity, by the namespace's label and grants.
    let mut own = of_class(simple(&key.arn, &wrapped, "own"));
    own["seals"][0]["awskms"]
        .as_object_mut()
        .unwrap()
        .remove("credentials");
    two.apply("own", &own).await;
    two.not_ready("own", "OperatorIdentityNotAllowed").await;
    let consent = json!({"metadata": {"labels": {LABEL: "allowed"}, "annotations": {GRANTS: key.arn}}});
    two.plane.patch("Namespace", "", &two.namespace, &consent).await;
    two.delivered("own", &[("root", &bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_holds_the_verb_grant_may_give_a_namespace_the_operators_identity() {
    let stage = Stage::bare("chart-s3", &json!({})).await;
    let granted = Stage::bare("chart-s3-granted", &json!({})).await;
    let plane = &stage.plane;
    let _release = Release::install(plane, json!({"tenantNamespaces": [stage.namespace]})).await;
    // Two people who may do everything to namespaces; one of them may grant, and for one namespace only.
    let id = unique();
    let (ordinary, granter) = (format!("ordinary-{id}"), format!("granter-{id}"));
    let admin = json!({"apiGroups": [""], "resources": ["namespaces", "namespaces/status", "namespaces/finalize"], "verbs": ["*"]});
    let grant = json!({"apiGroups": ["autounseal.dev"], "resources": ["operatoridentities"], "verbs": ["grant"],
        "resourceNames": [granted.namespace]});
    for (user, rules) in [(&ordinary, json!([admin])), (&granter, json!([admin, grant]))] {
        let api = "rbac.authorization.k8s.io";
        let version = format!("{api}/v1");
        plane
            .create(&json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": user}, "rules": rules}))
            .await;
        plane
            .create(
                &json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": user},
                "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": user},
                "subjects": [{"apiGroup": api, "kind": "User", "name": user}]}),
            )
            .await;
    }
    let label = format!("{LABEL}=allowed");
    let grants = format!("{GRANTS}=arn:aws:kms:us-east-1:123456789012:key/x");
    let by = |user: &str, words: &[&str]| kubectl(&[&["--as", user], words].concat());
    let refused = |(fine, said): (bool, String)| {
        if !fine && said.contains("takes the verb grant on operatoridentities.autounseal.dev") {
            Ok(())
        } else {
            Err(said)
        }
    };
    let name = stage.namespace.as_str();
    eventually("the policy in force", async || {
        refused(by(
            &ordinary,
            &["label", "namespace", name, &label, "--dry-run=server"],
        ))
    })
    .await;

    // Label and annotation, by the object, by its subresources, and from the start.
    let patch = json!({"metadata": {"labels": {LABEL: "allowed"}}}).to_string();
    let whole = plane.get("Namespace", "", name).await.unwrap();
    let mut finalize = whole.clone();
    finalize["metadata"]["labels"][LABEL] = json!("allowed");
    let finalize = file(&finalize.to_string());
    let path = format!("/api/v1/namespaces/{name}/finalize");
    let born = format!("chart-s3-born-{id}");
    let created = file(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": born, "labels": {LABEL: "allowed"}}})
            .to_string(),
    );
    for words in [
        ["label", "namespace", name, &label].as_slice(),
        &["annotate", "namespace", name, &grants],
        &[
            "patch",
            "namespace",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ],
        &["replace", "--raw", &path, "-f", &finalize],
        &["create", "-f", &created],
    ] {
        for user in [&ordinary, &granter] {
            if let Err(said) = refused(by(user, words)) {
                panic!("{user}, {words:?}: {said}");
            }
        }
    }
    let now = plane.get("Namespace", "", name).await.unwrap();
    assert_eq!(now["metadata"]["labels"], whole["metadata"]["labels"]);
    assert_eq!(now["metadata"].get("annotations"), None);
    assert_eq!(plane.get("Namespace", "", &born).await, None);

    // The one who may, where she may; others change everything else meanwhile, and may take the consent away.
    let name = granted.namespace.as_str();
    for (user, words) in [
        (&ordinary, ["label", "namespace", name, "team=us"].as_slice()),
        (&granter, &["label", "namespace", name, &label]),
        (&granter, &["annotate", "namespace", name, &grants]),
        (
            &ordinary,
            &["label", "namespace", name, "team=them", "--overwrite"],
        ),
    ] {
        let (fine, said) = by(user, words);
        assert!(fine, "{user}, {words:?}: {said}");
    }
    let more =
        format!("{GRANTS}=arn:aws:kms:us-east-1:123456789012:key/x,arn:aws:kms:us-east-1:123456789012:key/y");
    let words = ["annotate", "namespace", name, &more, "--overwrite"];
    if let Err(said) = refused(by(&ordinary, &words)) {
        panic!("{said}");
    }
    for words in [
        ["label", "namespace", name, &format!("{LABEL}-")],
        ["annotate", "namespace", name, &format!("{GRANTS}-")],
    ] {
        let (fine, said) = by(&ordinary, &words);
        assert!(fine, "{said}");
    }
}
