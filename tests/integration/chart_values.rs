//! The chart's values one by one: what each of them does to what is rendered, and what is refused.

use serde_json::{Value, json};

use crate::{
    chart::{objects_of, of_kind, render, values},
    support::helm::{chart, file, helm},
};

/// The chart with the least values and these.
fn with(given: &Value) -> (bool, String) {
    let (least, more) = (values("tenants"), file(&given.to_string()));
    let chart = chart();
    helm(&[
        "template",
        "r",
        &chart,
        "--namespace",
        "ops",
        "-f",
        &least,
        "-f",
        &more,
    ])
}

fn rendered(given: &Value) -> Vec<Value> {
    let (fine, text) = with(given);
    assert!(fine, "{given}: {text}");
    objects_of(&text)
}

/// What stands at a place of the one object of that kind, null if there is no such place.
fn at(objects: &[Value], kind: &str, pointer: &str) -> Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "one {kind}");
    found[0].pointer(pointer).cloned().unwrap_or_default()
}

const POD: &str = "/spec/template/spec";
const CONTAINER: &str = "/spec/template/spec/containers/0";

#[test]
fn each_value_of_the_pod_is_where_it_should_be() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let (tolerations, affinity) = (json!([{"operator": "Exists"}]), json!({"podAffinity": {}}));
    let spread = json!([{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]);
    let volume = json!([{"name": "ca", "configMap": {"name": "ca"}}]);
    let mount = json!([{"name": "ca", "mountPath": "/ca"}]);
    for (given, place, expected) in [
        (
            json!({}),
            format!("{CONTAINER}/image"),
            json!("registry.example.com/auto-unseal-operator:0.1.0"),
        ),
        (
            json!({"image": {"tag": "9", "digest": digest}}),
            format!("{CONTAINER}/image"),
            json!(format!("registry.example.com/auto-unseal-operator@{digest}")),
        ),
        (json!({}), "/spec/replicas".into(), json!(2)),
        (json!({"replicas": 0}), "/spec/replicas".into(), json!(0)),
        (json!({}), "/spec/strategy/type".into(), json!("RollingUpdate")),
        (
            json!({"replicas": 1, "leaderElect": false}),
            "/spec/strategy".into(),
            json!({"type": "Recreate"}),
        ),
        (
            json!({}),
            format!("{POD}/topologySpreadConstraints/0/whenUnsatisfiable"),
            json!("ScheduleAnyway"),
        ),
        (
            json!({"replicas": 1}),
            format!("{POD}/topologySpreadConstraints"),
            Value::Null,
        ),
        (
            json!({"topologySpreadConstraints": spread}),
            format!("{POD}/topologySpreadConstraints"),
            spread.clone(),
        ),
        (
            json!({"priorityClassName": "high"}),
            format!("{POD}/priorityClassName"),
            json!("high"),
        ),
        (
            json!({"nodeSelector": {"a": "b"}}),
            format!("{POD}/nodeSelector"),
            json!({"a": "b"}),
        ),
        (
            json!({"tolerations": tolerations}),
            format!("{POD}/tolerations"),
            tolerations.clone(),
        ),
        (
            json!({"affinity": affinity}),
            format!("{POD}/affinity"),
            affinity.clone(),
        ),
        (
            json!({"imagePullSecrets": [{"name": "x"}]}),
            format!("{POD}/imagePullSecrets"),
            json!([{"name": "x"}]),
        ),
        (
            json!({"extraEnv": [{"name": "A", "value": "b"}]}),
            format!("{CONTAINER}/env"),
            json!([{"name": "A", "value": "b"}]),
        ),
        (
            json!({"extraVolumes": volume}),
            format!("{POD}/volumes"),
            volume.clone(),
        ),
        (
            json!({"extraVolumeMounts": mount}),
            format!("{CONTAINER}/volumeMounts"),
            mount.clone(),
        ),
        (json!({}), format!("{CONTAINER}/env"), Value::Null),
        (json!({}), format!("{POD}/volumes"), Value::Null),
        (
            json!({"hostNetwork": true}),
            format!("{POD}/hostNetwork"),
            json!(true),
        ),
        (
            json!({"hostNetwork": true}),
            format!("{POD}/dnsPolicy"),
            json!("ClusterFirstWithHostNet"),
        ),
        (
            json!({"podAnnotations": {"a": "b"}}),
            "/spec/template/metadata/annotations".into(),
            json!({"a": "b"}),
        ),
        (
            json!({"podLabels": {"a": "b"}}),
            "/spec/template/metadata/labels/a".into(),
            json!("b"),
        ),
        (
            json!({"resources": {"limits": {"memory": "1Gi"}}}),
            format!("{CONTAINER}/resources"),
            json!({"requests": {"cpu": "20m", "memory": "48Mi"}, "limits": {"memory": "1Gi"}}),
        ),
        (
            json!({"podSecurityContext": {"runAsUser": 1000}}),
            format!("{POD}/securityContext"),
            json!({"runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"}}),
        ),
        (
            json!({}),
            format!("{CONTAINER}/securityContext"),
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}),
        ),
        (json!({}), format!("{POD}/enableServiceLinks"), json!(false)),
        (
            json!({"metrics": {"port": 9090}}),
            format!("{CONTAINER}/ports/0/containerPort"),
            json!(9090),
        ),
        (
            json!({"serviceAccount": {"name": "x"}}),
            format!("{POD}/serviceAccountName"),
            json!("x"),
        ),
        (
            json!({"serviceAccount": {"create": false}}),
            format!("{POD}/serviceAccountName"),
            json!("default"),
        ),
    ] {
        assert_eq!(at(&rendered(&given), "Deployment", &place), expected, "{given}");
    }
}

#[test]
fn each_value_that_is_a_flag_is_given_to_the_operator() {
    for (given, expected) in [
        (json!({}), "--watch-namespaces=billing,payments"),
        (json!({}), "--leader-elect-namespace=ops"),
        (json!({}), "--leader-elect-name=r-auto-unseal-operator"),
        (json!({"bindingDomain": "eu"}), "--binding-domain=eu"),
        (json!({"controllerClass": "c"}), "--controller-class=c"),
        (json!({"concurrency": 3}), "--concurrency=3"),
        (
            json!({"kmsRequestsPerSecond": 1_000_000}),
            "--kms-requests-per-second=1000000",
        ),
        (json!({"oldCopyRetention": "1h"}), "--old-copy-retention=1h"),
        (json!({"log": {"format": "text"}}), "--log-format=text"),
        (json!({"log": {"level": "trace"}}), "--log-level=trace"),
        (json!({"metrics": {"port": 9090}}), "--metrics-addr=0.0.0.0:9090"),
        (
            json!({"replicas": 1, "leaderElect": false}),
            "--leader-elect=false",
        ),
        (
            json!({"allowedEndpoints": ["https://a.example", "https://*.b.example:8443"]}),
            "--allowed-endpoints=https://a.example,https://*.b.example:8443",
        ),
        (
            json!({"operatorIdentity": {"namespaces": ["billing"]}}),
            "--operator-identity-namespaces=billing",
        ),
        (
            json!({"operatorIdentity": {"grants": {"billing": ["ocid1.key.x"]}}}),
            "--operator-identity-grants=/etc/autounseal/grants.yaml",
        ),
        (
            json!({"tenantNamespaces": [], "clusterWide": true, "operatorIdentity": {"label": false}}),
            "--operator-identity-label=false",
        ),
        (
            json!({"extraArgs": ["--share-cache-ttl=0s"]}),
            "--share-cache-ttl=0s",
        ),
    ] {
        let arguments = at(&rendered(&given), "Deployment", &format!("{CONTAINER}/args"));
        assert!(
            arguments.as_array().unwrap().contains(&json!(expected)),
            "{arguments}"
        );
    }
}

#[test]
fn what_is_not_asked_for_is_not_there() {
    for (given, kind, count) in [
        (json!({}), "PodDisruptionBudget", 1),
        (json!({"replicas": 1}), "PodDisruptionBudget", 0),
        (
            json!({"podDisruptionBudget": {"enabled": false}}),
            "PodDisruptionBudget",
            0,
        ),
        (json!({"crds": {"install": false}}), "CustomResourceDefinition", 0),
        (json!({}), "NetworkPolicy", 0),
        (json!({"networkPolicy": {"enabled": true}}), "NetworkPolicy", 1),
        (json!({"metrics": {"service": false}}), "Service", 0),
        (json!({}), "ServiceMonitor", 0),
        (json!({}), "PodMonitor", 0),
        (json!({}), "PrometheusRule", 0),
        (json!({"serviceAccount": {"create": false}}), "ServiceAccount", 0),
        // One for each tenant, and that of the Lease.
        (json!({}), "Role", 3),
        (json!({"replicas": 1, "leaderElect": false}), "Role", 2),
        (json!({"tenantNamespaces": ["one"]}), "Role", 2),
        (json!({"tenantNamespaces": [], "clusterWide": true}), "Role", 1),
        (
            json!({"tenantNamespaces": [], "clusterWide": true}),
            "ClusterRole",
            1,
        ),
        (json!({}), "ValidatingAdmissionPolicy", 4),
        (
            json!({"rights": {"restarts": false}}),
            "ValidatingAdmissionPolicy",
            3,
        ),
        (
            json!({"rights": {"serviceAccountTokens": false}}),
            "ValidatingAdmissionPolicy",
            3,
        ),
        (
            json!({"admissionPolicies": {"secrets": false, "operatorIdentity": false}}),
            "ValidatingAdmissionPolicy",
            2,
        ),
    ] {
        assert_eq!(
            of_kind(&rendered(&given), kind).len(),
            count,
            "{kind} with {given}"
        );
    }
}

#[test]
fn rights_are_granted_by_the_values_that_name_them() {
    let granted = |given: Value| {
        let objects = rendered(&given);
        let tenant = |role: &&&Value| role["metadata"]["namespace"] == "billing";
        let roles = of_kind(&objects, "Role");
        roles.iter().find(tenant).unwrap()["rules"].to_string()
    };
    let least = granted(json!({"rights": {"serviceAccountTokens": false, "restarts": false}}));
    for word in ["serviceaccounts/token", "pods/eviction", "deployments", "delete"] {
        assert!(!least.contains(word), "{word}: {least}");
    }
    assert!(granted(json!({})).contains("serviceaccounts/token"));
    assert!(granted(json!({})).contains("pods/eviction"));
    assert!(granted(json!({"rights": {"storeDeletion": true}})).contains("delete"));
}

#[test]
fn the_operators_role_of_aws_comes_by_a_projected_token_and_beside_other_variables() {
    let role = "arn:aws:iam::123456789012:role/unseal";
    let objects = rendered(&json!({
        "operatorIdentity": {"awsRoleARN": role, "grants": {"billing": ["ocid1.key.x"]}},
        "extraEnv": [{"name": "AWS_REGION", "value": "eu-west-1"}],
    }));
    let variables = at(&objects, "Deployment", &format!("{CONTAINER}/env"));
    let value = |name: &str| {
        let all = variables.as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!(value("AWS_ROLE_ARN"), role);
    assert_eq!(value("AWS_REGION"), "eu-west-1");
    let volumes = at(&objects, "Deployment", &format!("{POD}/volumes"));
    let token = &volumes[0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "sts.amazonaws.com");
    // The file that the variable names is the one that is mounted.
    let mounts = at(&objects, "Deployment", &format!("{CONTAINER}/volumeMounts"));
    assert_eq!(mounts[0]["name"], volumes[0]["name"]);
    let file = format!(
        "{}/{}",
        mounts[0]["mountPath"].as_str().unwrap(),
        token["path"].as_str().unwrap()
    );
    assert_eq!(value("AWS_WEB_IDENTITY_TOKEN_FILE"), file);
    assert_eq!(
        (
            mounts.as_array().unwrap().len(),
            volumes.as_array().unwrap().len()
        ),
        (2, 2)
    );
}

#[test]
fn a_closed_network_lets_servers_be_unsealed_in_the_operators_namespaces_only() {
    let towards = |given: &Value| {
        let egress = at(&rendered(given), "NetworkPolicy", "/spec/egress");
        let of_port = |rule: &&Value| rule["ports"][0]["port"] == 8200;
        egress
            .as_array()
            .unwrap()
            .iter()
            .find(of_port)
            .map(|rule| rule["to"].clone())
    };
    let enabled = json!({"networkPolicy": {"enabled": true}});
    let tenants = json!([{"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["billing", "payments"]}]}}]);
    assert_eq!(towards(&enabled), Some(tenants));
    let mut wide = enabled.clone();
    wide["clusterWide"] = json!(true);
    wide["tenantNamespaces"] = json!([]);
    assert_eq!(towards(&wide), Some(json!([{"namespaceSelector": {}}])));
    let mut none = enabled;
    none["networkPolicy"]["unsealPorts"] = json!([]);
    assert_eq!(towards(&none), None);
}

#[test]
fn further_objects_are_manifests_or_texts_and_know_the_release() {
    let objects = rendered(&json!({"extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-one"}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ include \"autounseal.fullname\" . }}-two}\n",
    ]}));
    let maps = of_kind(&objects, "ConfigMap");
    let names: Vec<_> = maps
        .iter()
        .map(|map| map["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["r-one", "r-auto-unseal-operator-two"]);
}

#[test]
fn the_longest_names_fit_and_every_object_lies_where_it_should() {
    let (release, namespace) = ("r".repeat(53), "n".repeat(63));
    for file in ["tenants", "cluster-wide", "everything"] {
        let objects = render(&release, &namespace, &values(file));
        for object in &objects {
            let (kind, metadata) = (object["kind"].as_str().unwrap(), &object["metadata"]);
            let name = metadata["name"].as_str().unwrap();
            let longest = if ["Service", "Deployment"].contains(&kind) {
                63
            } else {
                253
            };
            assert!(name.len() <= longest && !name.ends_with('-'), "{kind} {name}");
            let labels = metadata["labels"].as_object().into_iter().flatten();
            for (label, value) in labels {
                assert!(value.as_str().unwrap().len() <= 63, "{label} of {kind} {name}");
            }
            let cluster =
                kind.starts_with("Cluster") || kind.starts_with("Validating") || kind.starts_with("Custom");
            let place = metadata["namespace"].as_str();
            if cluster {
                assert_eq!(place, None, "{kind} {name}");
            } else {
                let tenants = ["billing", "payments"];
                assert!(
                    place == Some(namespace.as_str()) || place.is_some_and(|place| tenants.contains(&place)),
                    "{kind} {name} lies in {place:?}"
                );
            }
        }
    }
}

/// Kubernetes cuts the names of pods: `NAME-` of the ReplicaSet at 58 characters, and adds five.
#[test]
fn the_alert_for_a_missing_leader_knows_the_pods_of_the_longest_name_too() {
    for length in [1, 40, 46, 47, 57, 58, 63] {
        let name = "f".repeat(length);
        let given = json!({"fullnameOverride": name, "metrics": {"rules": {"enabled": true}}});
        let rules = at(&rendered(&given), "PrometheusRule", "/spec/groups/0/rules");
        let of_leader = |rule: &&Value| rule["alert"] == "AutounsealNoLeader";
        let rule = rules.as_array().unwrap().iter().find(of_leader).unwrap().clone();
        let expression = rule["expr"].as_str().unwrap();
        let pattern = expression
            .split("pod=~\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let mut pod = format!("{name}-5d9c7b8f6d-");
        pod.truncate(58);
        pod.push_str("x7k2p");
        let known = pattern.strip_suffix(".*").unwrap();
        assert!(
            pod.starts_with(known) && known.starts_with(&name[..length.min(58)]),
            "{pattern} {pod}"
        );
    }
}

#[test]
fn values_of_the_wrong_form_are_refused_by_the_schema() {
    for (given, place) in [
        (
            json!({"podDisruptionBudget": {"maxUnavailable": 0}}),
            "maxUnavailable",
        ),
        (
            json!({"podDisruptionBudget": {"maxUnavailable": "all"}}),
            "maxUnavailable",
        ),
        (
            json!({"podDisruptionBudget": {"minAvailable": 1}}),
            "minAvailable",
        ),
        (json!({"networkPolicy": {"unsealPorts": [0]}}), "unsealPorts"),
        (json!({"networkPolicy": {"egressPorts": []}}), "egressPorts"),
        (
            json!({"networkPolicy": {"egressCIDRs": ["everything"]}}),
            "egressCIDRs",
        ),
        (
            json!({"operatorIdentity": {"awsRoleARN": "unseal"}}),
            "awsRoleARN",
        ),
        (json!({"extraObjects": [1]}), "extraObjects"),
        (json!({"extraArgs": ["-x"]}), "extraArgs"),
        (json!({"extraEnv": [{"value": "x"}]}), "extraEnv"),
        (json!({"extraVolumeMounts": [{"name": "x"}]}), "extraVolumeMounts"),
        (json!({"tenantNamespaces": ["n".repeat(64)]}), "tenantNamespaces"),
        (json!({"tenantNamespaces": "billing"}), "tenantNamespaces"),
        (json!({"nameOverride": "Unseal"}), "nameOverride"),
        (json!({"fullnameOverride": "f".repeat(64)}), "fullnameOverride"),
        (json!({"replicas": -1}), "replicas"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "pullPolicy"),
        (
            json!({"image": {"repository": "https://registry.example.com/x"}}),
            "repository",
        ),
        (json!({"controllerClass": "A"}), "controllerClass"),
        (json!({"oldCopyRetention": "7d"}), "oldCopyRetention"),
        (json!({"resources": {"limits": {"memory": "lots"}}}), "memory"),
        (
            json!({"serviceAccount": {"annotations": {"a": 1}}}),
            "annotations",
        ),
        (
            json!({"metrics": {"serviceMonitor": {"interval": "soon"}}}),
            "interval",
        ),
        (json!({"watchNamespaces": ["billing"]}), "watchNamespaces"),
    ] {
        let (fine, said) = with(&given);
        assert!(!fine, "{given} was taken");
        assert!(
            said.contains("don't meet the specifications of the schema") && said.contains(place),
            "{given}: {said}"
        );
    }
}
