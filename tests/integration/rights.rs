//! Each right of the chart's Role is needed: taken away, something that people see says so; and with all of them
//! nothing does.

use std::collections::BTreeSet;

use data_encoding::BASE64;
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    managed_keys,
    pods::{a_second_later, replica_set, restarting, rewrapped, workload},
    support::{
        helm::Release,
        http::{Reply, Server},
        knife::Knife,
        operator::{Operator, Running},
        plane::{Plane, eventually},
        scene::Scene,
        stage::{random, simple, unique},
        sts::Sts,
    },
    unseal,
};

/// Where a missing right shows.
#[derive(Clone, Copy, Debug)]
enum Shows {
    /// In the operator's log.
    Log(&'static str),
    /// In the status of this SealConfig.
    Status(&'static str, &'static str),
    /// In the status of the SealConfig `web`, once its key has changed and workloads of this kind are to be restarted.
    Restart(&'static str, &'static str),
    /// In the operator's log, once the SealConfig `web` is Ready for a second time.
    SecondEvent(&'static str),
    /// In the operator's log, once a SealConfig whose wrapped store should go with it is deleted.
    Deletion(&'static str),
}

use Shows::{Deletion, Log, Restart, SecondEvent, Status};

const EVENT: &str = "an event was not taken by the apiserver";
const WRITE: &str = "a missing right (create and patch secrets)";

/// Group, resource, verb, and where it shows that it is missing.
const RIGHTS: &[(&str, &str, &str, Shows)] = &[
    (
        "autounseal.dev",
        "sealconfigs",
        "list",
        Log("the watch of sealconfigs failed"),
    ),
    (
        "autounseal.dev",
        "sealconfigs",
        "watch",
        Log("the watch of sealconfigs failed"),
    ),
    (
        "autounseal.dev",
        "sealconfigs/status",
        "patch",
        Log("the status of a SealConfig was not written"),
    ),
    (
        "autounseal.dev",
        "sealconfigs",
        "patch",
        Deletion("may not patch sealconfigs"),
    ),
    (
        "autounseal.dev",
        "managedkeys",
        "list",
        Log("the watch of managedkeys failed"),
    ),
    (
        "autounseal.dev",
        "managedkeys",
        "watch",
        Log("the watch of managedkeys failed"),
    ),
    (
        "autounseal.dev",
        "managedkeys/status",
        "patch",
        Log("the status of a ManagedKey was not written"),
    ),
    (
        "autounseal.dev",
        "managedkeys",
        "patch",
        Log("may not patch managedkeys"),
    ),
    ("", "secrets", "delete", Deletion("may not delete secrets")),
    ("", "secrets", "list", Log("the watch of secrets failed")),
    ("", "secrets", "watch", Log("the watch of secrets failed")),
    ("", "secrets", "get", Status("web", "may not get secrets")),
    ("", "secrets", "create", Status("web", WRITE)),
    ("", "secrets", "patch", Status("web", WRITE)),
    ("", "configmaps", "list", Log("the watch of configmaps failed")),
    ("", "configmaps", "watch", Log("the watch of configmaps failed")),
    (
        "",
        "configmaps",
        "get",
        Status("copied", "may not get configmaps"),
    ),
    (
        "",
        "serviceaccounts",
        "list",
        Log("the watch of serviceaccounts failed"),
    ),
    (
        "",
        "serviceaccounts",
        "watch",
        Log("the watch of serviceaccounts failed"),
    ),
    (
        "",
        "serviceaccounts",
        "get",
        Status("account", "may not get serviceaccounts"),
    ),
    (
        "",
        "serviceaccounts/token",
        "create",
        Status("account", "may not create serviceaccounts/token"),
    ),
    ("", "pods", "list", Log("the watch of pods failed")),
    ("", "pods", "watch", Log("the watch of pods failed")),
    ("", "pods", "get", Status("sealed", "may not get pods")),
    ("events.k8s.io", "events", "create", Log(EVENT)),
    ("events.k8s.io", "events", "patch", SecondEvent(EVENT)),
    (
        "apps",
        "replicasets",
        "get",
        Restart("Deployment", "may not get replicasets"),
    ),
    (
        "apps",
        "deployments",
        "get",
        Restart("Deployment", "may not get deployments"),
    ),
    (
        "apps",
        "deployments",
        "patch",
        Restart("Deployment", "may not patch deployments"),
    ),
    (
        "apps",
        "statefulsets",
        "get",
        Restart("StatefulSet", "may not get statefulsets"),
    ),
    (
        "apps",
        "statefulsets",
        "patch",
        Restart("StatefulSet", "may not patch statefulsets"),
    ),
    (
        "apps",
        "daemonsets",
        "get",
        Restart("DaemonSet", "may not get daemonsets"),
    ),
    (
        "apps",
        "daemonsets",
        "patch",
        Restart("DaemonSet", "may not patch daemonsets"),
    ),
    (
        "",
        "pods/eviction",
        "create",
        Restart("StatefulSet", "may not create pods/eviction"),
    ),
];

/// The rules one by one: a rule with one group, resource and verb each.
fn single(rules: &Value) -> Vec<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for rule in list(rules) {
        for (group, resource) in list(&rule["apiGroups"]).iter().flat_map(|group| {
            list(&rule["resources"])
                .into_iter()
                .map(move |resource| (group.clone(), resource))
        }) {
            for verb in list(&rule["verbs"]) {
                found.push(json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]}));
            }
        }
    }
    found
}

fn rule(group: &str, resource: &str, verb: &str) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]})
}

/// One namespace with its KMS, STS and operator.
struct Trial {
    scene: Scene,
    sts: Sts,
    /// Says that it is sealed, whatever it is given.
    server: Server,
}

impl Trial {
    async fn new() -> Self {
        let (scene, sts) = (Scene::new("rights").await, Sts::start());
        let mut account = scene.stage.object("v1", "ServiceAccount", "app");
        account["metadata"]["annotations"] =
            json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app"});
        scene.stage.plane.apply(&account).await;
        let sealed = r#"{"initialized":true,"sealed":true,"t":1}"#;
        let server = Server::start(move |_| Reply::new(200, "application/json", sealed));
        Self { scene, sts, server }
    }

    fn operator(&self, of_release: &Operator) -> Operator {
        of_release
            .clone()
            .without_flags(|flag| flag.starts_with("--leader-elect"))
            .flags([format!("--watch-namespaces={}", self.scene.stage.namespace)])
            .flags([format!(
                "--insecure-unseal-namespaces={}",
                self.scene.stage.namespace
            )])
            .flags(["--unseal-allow-loopback"])
            .env("AWS_ENDPOINT_URL_KMS", self.scene.kms.url())
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
    }

    /// A copy in a ConfigMap, a seal that takes the identity of a ServiceAccount, and a server to unseal.
    async fn sources(&self) {
        self.managed().await;
        let stage = &self.scene.stage;
        let wrapped = self.scene.wrap(&random(32));
        let mut map = stage.object("v1", "ConfigMap", "copies");
        map["binaryData"] = json!({"root": BASE64.encode(&wrapped)});
        stage.plane.apply(&map).await;
        let mut copied = simple(&self.scene.key.arn, &wrapped, "copied");
        copied["keys"][0]["wrapped"][0] =
            json!({"seal": "aws", "format": "kms", "configMapKeyRef": {"name": "copies", "key": "root"}});
        stage.apply("copied", &copied).await;
        let mut account = simple(&self.scene.key.arn, &wrapped, "account");
        account["seals"][0]["awskms"]["credentials"] = json!({"serviceAccountRef": {"name": "app"}});
        stage.apply("account", &account).await;
        let address = self.server.address();
        let mut sealed = unseal::spec(&self.scene, &[random(33)], "server", address.port());
        sealed["unseal"]["scheme"] = json!("http");
        sealed["unseal"].as_object_mut().unwrap().remove("tls");
        unseal::pod(&self.scene, "server", "server", address.ip()).await;
        stage.apply("sealed", &sealed).await;
    }

    /// Delivers, lets a workload start with it, and changes the key.
    async fn rotate(&self, kind: &str) {
        let (scene, stage) = (&self.scene, &self.scene.stage);
        let made = workload(scene, kind, "web", "web", true).await;
        let (first, second) = (random(32), random(32));
        let spec = restarting(scene, "web", &first);
        stage.apply("web", &spec).await;
        stage.delivered("web", &[("root", &first)]).await;
        let owner = match kind {
            "Deployment" => replica_set(scene, &made).await,
            _ => made,
        };
        for index in 0..3 {
            stage
                .pod(&format!("web-{index}"), "web", Some("web"), Some(&owner))
                .await;
        }
        stage.ready("web").await;
        a_second_later().await;
        stage.apply("web", &rewrapped(scene, &spec, &second)).await;
        stage.delivered("web", &[("root", &second)]).await;
    }

    /// A ManagedKey whose finalizer and status are written, and nothing else, for it has no SealConfig.
    async fn managed(&self) {
        let spec = json!({
            "type": "aes256-gcm96", "usage": "EncryptDecrypt", "material": {"generate": {}},
            "sealConfigRef": {"name": "nowhere"}, "deletion": {"policy": "Disable"},
        });
        managed_keys::apply(&self.scene.stage, "managed", &spec).await;
    }

    async fn web(&self) {
        self.managed().await;
        let bytes = random(32);
        self.scene
            .stage
            .apply("web", &self.scene.spec("web", &bytes))
            .await;
    }

    /// Ready, then not, then Ready again.
    async fn there_and_back(&self) {
        let stage = &self.scene.stage;
        let spec = self.scene.deliver("web", &random(32)).await;
        let mut wrong = spec.clone();
        wrong["keys"][0]["wrapped"][0] =
            json!({"seal": "aws", "format": "kms", "configMapKeyRef": {"name": "nowhere", "key": "root"}});
        stage.apply("web", &wrong).await;
        stage.not_ready("web", "SourceMissing").await;
        stage.apply("web", &spec).await;
        stage.ready("web").await;
    }

    /// Its wrapped store should go with it.
    async fn doomed(&self, running: &Running) {
        let stage = &self.scene.stage;
        let mut spec = self.scene.spec("doomed", &random(32));
        spec["keys"] = json!([{"name": "root", "generate": {}}]);
        spec["wrappedDeletionPolicy"] = json!("Delete");
        stage.apply("doomed", &spec).await;
        eventually("the store, or no right to the finalizer", async || {
            let store = stage.secret("doomed.sealconfig.wrapped").await;
            let said = running.output();
            let told = store.is_some() || said.contains("may not patch sealconfigs");
            told.then_some(()).ok_or(said)
        })
        .await;
        stage.plane.delete("SealConfig", &stage.namespace, "doomed").await;
    }

    async fn status(&self, name: &str) -> String {
        self.scene.stage.config(name).await["status"].to_string()
    }

    async fn shows(&self, shows: Shows, of_release: &Operator, what: &str) {
        let running = self.operator(of_release).spawn();
        match shows {
            Log(_) => self.web().await,
            Status(..) => {
                self.web().await;
                self.sources().await;
            }
            Restart(kind, _) => self.rotate(kind).await,
            SecondEvent(_) => self.there_and_back().await,
            Deletion(_) => self.doomed(&running).await,
        }
        eventually(what, async || {
            let (text, expected) = match shows {
                Log(expected) | SecondEvent(expected) | Deletion(expected) => (running.output(), expected),
                Status(name, expected) => (self.status(name).await, expected),
                Restart(_, expected) => (self.status("web").await, expected),
            };
            text.contains(expected).then_some(()).ok_or(text)
        })
        .await;
    }
}

/// The Role that the chart has put into a namespace, and its name.
async fn role(plane: &Plane, namespace: &str) -> Value {
    let mut roles = plane.list("Role", namespace).await;
    assert_eq!(roles.len(), 1);
    roles.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_of_the_role_is_missed_when_it_is_taken_away_and_none_is_missed_else() {
    let plane = Plane::connect().await;
    let kinds = ["Deployment", "StatefulSet", "DaemonSet"];
    let mut trials = Vec::new();
    for _ in 0..RIGHTS.len() + kinds.len() {
        trials.push(Trial::new().await);
    }
    let namespaces: Vec<_> = trials
        .iter()
        .map(|trial| trial.scene.stage.namespace.clone())
        .collect();
    let values =
        json!({"tenantNamespaces": namespaces, "log": {"level": "debug"}, "rights": {"storeDeletion": true}});
    let release = Release::install(&plane, values).await;
    // Each operator looks after one of the namespaces.
    let of_release = release
        .operator()
        .await
        .without_flags(|flag| flag.starts_with("--watch-namespaces="));

    let granted = single(&role(&plane, &namespaces[0]).await["rules"]);
    let as_text = |rules: &[Value]| rules.iter().map(Value::to_string).collect::<BTreeSet<_>>();
    let listed: Vec<_> = RIGHTS
        .iter()
        .map(|(group, resource, verb, _)| rule(group, resource, verb))
        .collect();
    assert_eq!(
        as_text(&granted),
        as_text(&listed),
        "each right has its line here"
    );

    let whole = trials.split_off(RIGHTS.len());
    let (plane, of_release, granted) = (&plane, &of_release, &granted);
    stream::iter(RIGHTS.iter().zip(&trials))
        .for_each_concurrent(6, async |((group, resource, verb, shows), trial)| {
            let namespace = &trial.scene.stage.namespace;
            let name = role(plane, namespace).await["metadata"]["name"].clone();
            let missing = rule(group, resource, verb);
            let left: Vec<_> = granted.iter().filter(|rule| **rule != missing).collect();
            plane
                .patch("Role", namespace, name.as_str().unwrap(), &json!({"rules": left}))
                .await;
            let what = format!("without {verb} of {resource} ({group:?})");
            // From 1.34 on a watch brings the first list of most kinds; before, the operator lists them.
            let (_older, behind) = Knife::of_version(of_release, 33).await;
            let operator = if *verb == "list" { &behind } else { of_release };
            trial.shows(*shows, operator, &what).await;
        })
        .await;

    // With all of them: every way is gone, and nobody complains.
    for (trial, kind) in whole.iter().zip(kinds) {
        let stage = &trial.scene.stage;
        let running = trial.operator(of_release).start();
        trial.sources().await;
        for name in ["copied", "account"] {
            stage.ready(name).await;
        }
        trial.rotate(kind).await;
        eventually("restarted", async || {
            let workload = stage.plane.get(kind, &stage.namespace, "web").await.unwrap();
            let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
            let restarted = annotations.get("autounseal.dev/delivered").is_some();
            let pods = stage.plane.list("Pod", &stage.namespace).await;
            // No kubelet ends them.
            let evicted = pods
                .iter()
                .any(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
            let complete = restarted && (evicted || kind != "StatefulSet");
            complete.then_some(()).ok_or_else(|| workload.to_string())
        })
        .await;
        let said = running.output();
        for (_, _, _, shows) in RIGHTS {
            match shows {
                Log(fragment) | SecondEvent(fragment) | Deletion(fragment) => {
                    assert!(!said.contains(fragment), "{said}");
                }
                Status(name, fragment) => assert!(!trial.status(name).await.contains(fragment)),
                Restart(_, fragment) => assert!(!trial.status("web").await.contains(fragment)),
            }
        }
    }
    let trial = &whole[0];
    let running = trial.operator(of_release).start();
    trial.there_and_back().await;
    trial.doomed(&running).await;
    let stage = &trial.scene.stage;
    eventually("the store goes with its SealConfig", async || {
        let (store, config) = (
            stage.secret("doomed.sealconfig.wrapped").await,
            stage.plane.get("SealConfig", &stage.namespace, "doomed").await,
        );
        (store.is_none() && config.is_none())
            .then_some(())
            .ok_or_else(|| running.output())
    })
    .await;
    assert!(!running.output().contains(EVENT));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_to_the_lease_is_missed_when_it_is_taken_away_and_nothing_is_done_without_it() {
    let scene = Scene::new("rights-lease").await;
    let (stage, plane) = (&scene.stage, &scene.stage.plane);
    // The Lease is that of the class.
    let class = format!("c{}", unique());
    let values = json!({"tenantNamespaces": [stage.namespace], "controllerClass": class});
    let release = Release::install(plane, values).await;
    let operator = release
        .operator()
        .await
        .env("AWS_ENDPOINT_URL_KMS", scene.kms.url());
    let role = role(plane, &release.namespace).await;
    let name = role["metadata"]["name"].as_str().unwrap();
    let mut rules = single(&role["rules"]);
    for (rule, whole) in rules.iter_mut().zip(["create", "get", "update"]) {
        assert_eq!(rule["verbs"], json!([whole]));
        if whole != "create" {
            rule["resourceNames"] = json!([format!("{}-{class}", lease_name(&release))]);
        }
    }
    let mut spec = scene.spec("web", &random(32));
    spec["controllerClass"] = json!(class);
    stage.apply("web", &spec).await;
    let mut running = operator.start();
    for missing in ["create", "get", "update"] {
        // A leader that may not renew ends; here each one starts without a Lease, and with all rights but one.
        drop(running);
        plane
            .delete(
                "Lease",
                &release.namespace,
                &format!("{}-{class}", lease_name(&release)),
            )
            .await;
        if missing == "update" {
            let free = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata":
                {"namespace": release.namespace, "name": format!("{}-{class}", lease_name(&release))}, "spec": {}});
            plane.create(&free).await;
        }
        let left: Vec<_> = rules
            .iter()
            .filter(|rule| rule["verbs"] != json!([missing]))
            .collect();
        plane
            .patch("Role", &release.namespace, name, &json!({"rules": left}))
            .await;
        plane.delete("Secret", &stage.namespace, "web").await;
        running = operator.start();
        eventually(&format!("without {missing}"), async || {
            let said = running.output();
            let told = said.contains(&format!("the apiserver answers 403 to {missing}"));
            told.then_some(()).ok_or(said)
        })
        .await;
        assert_eq!(stage.secret("web").await, None);
    }
    plane
        .patch("Role", &release.namespace, name, &json!({"rules": rules}))
        .await;
    eventually("delivered, once it may", async || {
        let delivered = stage.secret("web").await;
        delivered.map(drop).ok_or_else(|| running.output())
    })
    .await;
}

fn lease_name(release: &Release) -> String {
    format!("{}-auto-unseal-operator", release.namespace)
}
