//! A user who may write SealConfigs, and read them and events, but no Secret: what such a user can learn of Secrets, in the
//! own namespace and in another, by everything that the API lets be named.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    helm::{file, kubectl},
    needle::Needle,
    operator::Operator,
    plane::eventually,
    scene::Scene,
    stage::{Stage, condition, random, repository, speaks_of_now, unique},
};

/// A user with rights on SealConfigs and events of one namespace.
struct User<'s> {
    name: String,
    stage: &'s Stage,
}

impl<'s> User<'s> {
    async fn new(stage: &'s Stage) -> Self {
        let name = format!("snoop-{}", unique());
        let api = "rbac.authorization.k8s.io";
        let mut role = stage.object(&format!("{api}/v1"), "Role", &name);
        role["rules"] = json!([
            {"apiGroups": ["autounseal.dev"], "resources": ["sealconfigs"], "verbs": ["*"]},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["get", "list", "watch"]},
        ]);
        stage.plane.create(&role).await;
        let mut binding = stage.object(&format!("{api}/v1"), "RoleBinding", &name);
        binding["roleRef"] = json!({"apiGroup": api, "kind": "Role", "name": name});
        binding["subjects"] = json!([{"apiGroup": api, "kind": "User", "name": name}]);
        stage.plane.create(&binding).await;
        Self { name, stage }
    }

    fn run(&self, words: &[&str]) -> (bool, String) {
        let place = ["--as", &self.name, "--namespace", &self.stage.namespace];
        kubectl(&[place.as_slice(), words].concat())
    }

    /// Applies a SealConfig; what the apiserver said.
    fn apply(&self, name: &str, spec: &Value) -> (bool, String) {
        let path = file(&self.stage.seal_config(name, spec).to_string());
        self.run(&["apply", "-f", &path])
    }

    /// Everything that is to be seen.
    fn sees(&self) -> String {
        let mut all = String::new();
        for what in ["sealconfigs.autounseal.dev", "events.events.k8s.io"] {
            let (fine, said) = self.run(&["get", what, "--output", "json"]);
            assert!(fine, "{said}");
            all += &said;
        }
        all
    }
}

/// A Secret that somebody else keeps: what every reader of it looks for, each with bytes that can be found again. `start`:
/// the first bytes of its key, by which it is no message of any form, each in another way.
async fn victim(stage: &Stage, name: &str, start: [u8; 2]) -> Vec<Needle> {
    let mut key = random(32);
    key[..2].copy_from_slice(&start);
    let word = || format!("needle{}{}", unique(), unique());
    let words: Vec<String> = (0..4).map(|_| word()).collect();
    let mut entries: Vec<(&str, &[u8])> = vec![("key", &key)];
    let names = ["access_key", "secret_key", "user", "key.pem"];
    entries.extend(
        names
            .iter()
            .zip(&words)
            .map(|(name, word)| (*name, word.as_bytes())),
    );
    stage.secret_of(name, &entries).await;
    let found = words.iter().map(|word| Needle::new("a word", word.as_bytes()));
    found.chain([Needle::new("the key", &key)]).collect()
}

/// Every field that names a Secret, pointed at this one.
fn attacks(scene: &Scene, victim: &str) -> Vec<(&'static str, Value)> {
    let entry = json!({"name": victim, "key": "key"});
    // To be overwritten: one that no other of these reads, which would be told instead.
    let own = format!("{victim}-own");
    let usual = scene.spec("x", &random(32));
    let with = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut spec = usual.clone();
        spec["targets"][0]["secret"]["name"] = json!(format!("{name}-of-{victim}"));
        change(&mut spec);
        spec
    };
    let wrapped = |format: &str| json!([{"seal": "aws", "format": format, "secretKeyRef": entry}]);
    let oci = |spec: &mut Value, credentials: Value| {
        spec["seals"][0] = json!({"name": "aws", "ocikms": {
            "keyID": "ocid1.key.oc1.eu-frankfurt-1.bbpnqqmlaaceu.abtheljtexamplekey",
            "cryptoEndpoint": "https://bbpnqqmlaaceu-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            "managementEndpoint": "https://bbpnqqmlaaceu-management.kms.eu-frankfurt-1.oraclecloud.com",
            "credentials": credentials}});
    };
    vec![
        (
            "ciphertext",
            with("ciphertext", &|spec| spec["keys"][0]["wrapped"] = wrapped("kms")),
        ),
        (
            "blob",
            with("blob", &|spec| spec["keys"][0]["wrapped"] = wrapped("blobinfo")),
        ),
        (
            "credentials",
            with("credentials", &|spec| {
                spec["seals"][0]["awskms"]["credentials"] = json!({"secretRef": {"name": victim}});
            }),
        ),
        (
            "api-key",
            with("api-key", &|spec| {
                oci(spec, json!({"apiKey": {"secretRef": {"name": victim}}}));
            }),
        ),
        (
            "import",
            with("import", &|spec| {
                spec["keys"][0] = json!({"name": "root", "import": {"secretKeyRef": entry}});
            }),
        ),
        (
            "template",
            with("template", &|spec| {
                spec["keys"][0] = json!({"name": "root", "import": {"secretKeyRef": entry}});
                spec["targets"][0]["secret"]["data"] = json!([{"name": "x", "template": "{{ keys[\"root\"].base64 }} {{ keys[\"root\"].nothing }}"}]);
            }),
        ),
        (
            "authority",
            with("authority", &|spec| {
                spec["keys"][0]["purpose"] = json!("unseal-share");
                spec.as_object_mut().unwrap().remove("targets");
                spec["unseal"] = json!({"product": "vault", "podSelector": {"matchLabels": {"app": "x"}},
                    "tls": {"ca": {"secretKeyRef": entry}, "serverName": "x.example"}});
            }),
        ),
        (
            "target",
            with("target", &|spec| {
                spec["targets"][0]["secret"]["name"] = json!(own);
            }),
        ),
        (
            "adopted",
            with("adopted", &|spec| {
                spec["targets"][0]["secret"]["name"] = json!(own);
                spec["targets"][0]["secret"]["adopt"] = json!(true);
            }),
        ),
    ]
}

/// Waits until the operator has had its say; what it says, without the names that differ.
async fn verdict(stage: &Stage, name: &str, victim: &str) -> Vec<(String, String, String)> {
    let config = eventually(&format!("{name} was looked at"), async || {
        let config = stage.config(name).await;
        let ready = condition(&config, "Ready");
        // Where there is no pod to unseal, that is all there is to say.
        let idle = ready["message"].as_str().unwrap().contains("selects no pod");
        let done = (ready["reason"] != "Pending" || idle) && speaks_of_now(&config);
        done.then_some(config).ok_or_else(|| ready.to_string())
    })
    .await;
    let said = config["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|condition| {
            let text = |field: &str| {
                condition[field]
                    .as_str()
                    .unwrap()
                    .replace(name, "NAME")
                    .replace(victim, "VICTIM")
            };
            (text("type"), text("reason"), text("message"))
        });
    said.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_write_seal_configs_only_learns_no_byte_of_a_secret() {
    let scene = Scene::new("snooping").await;
    let stage = &scene.stage;
    let user = User::new(stage).await;
    let running = scene.start();
    let mut needles = Vec::new();
    let victims = ["victim-a", "victim-b"];
    for (name, start) in victims.into_iter().zip([[0x07, 0], [0x0a, 0x7f]]) {
        needles.extend(victim(stage, name, start).await);
        needles.extend(victim(stage, &format!("{name}-own"), start).await);
    }
    let all = ["victim-a", "victim-b", "victim-a-own", "victim-b-own"];
    let mut before = Vec::new();
    for name in all {
        before.push(stage.whole_secret(name).await);
    }
    let kinds: Vec<_> = attacks(&scene, "x").into_iter().map(|(kind, _)| kind).collect();
    for victim in victims {
        for (kind, spec) in attacks(&scene, victim) {
            let (_, said) = user.apply(&format!("{kind}-{victim}"), &spec);
            let found = needles.iter().find_map(|needle| needle.found_in(said.as_bytes()));
            assert_eq!(found, None, "{said}");
        }
    }
    // What is said of two Secrets that differ in every byte is the same: nothing of what is in them decides it.
    for kind in kinds {
        let mut verdicts = Vec::new();
        for victim in victims {
            let name = format!("{kind}-{victim}");
            if stage
                .plane
                .get("SealConfig", &stage.namespace, &name)
                .await
                .is_some()
            {
                verdicts.push(verdict(stage, &name, victim).await);
            }
        }
        println!("{kind}: {:?}", verdicts.first().map(|all| &all[0]));
        assert!(
            verdicts.windows(2).all(|pair| pair[0] == pair[1]),
            "{kind}: {verdicts:#?}"
        );
    }
    let places = [
        ("what the user sees", user.sees()),
        ("metrics", running.metrics()),
        ("output", running.output()),
    ];
    for (place, text) in &places {
        for needle in &needles {
            assert_eq!(
                needle.found_in(text.as_bytes()),
                None,
                "{} in {place}",
                needle.what
            );
        }
    }
    // What was delivered on the way lies where the user may not look, and the Secrets are as they were.
    for words in [["get", "secrets"], ["get", "pods"]] {
        let (fine, said) = user.run(&words);
        assert!(!fine && said.contains("forbidden"), "{said}");
    }
    for (name, before) in all.iter().zip(&before) {
        let after = stage.whole_secret(name).await;
        assert_eq!(
            after["metadata"]["resourceVersion"],
            before["metadata"]["resourceVersion"]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_reaches_a_secret_of_another_namespace() {
    let scene = Scene::new("reaching").await;
    let (here, there) = (&scene.stage, Stage::new("reached").await);
    let needles = victim(&there, "victim", [0x07, 0]).await;
    // An operator that may read both.
    let class = format!("c{}", unique());
    let running = Operator::new()
        .flags(["--controller-class", &class, "--log-level", "debug"])
        .env("AWS_ENDPOINT_URL_KMS", scene.kms.url())
        .start();
    let before = there.plane.list("Secret", &there.namespace).await;
    let user = User::new(here).await;
    let names = [
        "victim".to_owned(),
        format!("{}/victim", there.namespace),
        format!("victim.{}", there.namespace),
        format!("../{}/victim", there.namespace),
    ];
    let mut tried = 0;
    for (number, name) in names.iter().enumerate() {
        for (kind, mut spec) in attacks(&scene, name) {
            if kind.starts_with("target") || kind.starts_with("adopted") {
                // A name of one's own Secret, wherever another of that name lies.
                continue;
            }
            spec["controllerClass"] = json!(class);
            if let Some(target) = spec.pointer_mut("/targets/0/secret/name") {
                *target = json!(format!("{kind}-{number}"));
            }
            let config = format!("{kind}-{number}");
            let (taken, said) = user.apply(&config, &spec);
            if !taken {
                assert!(name.contains('/') || kind == "template", "{kind} {name}: {said}");
                continue;
            }
            tried += 1;
            let said = verdict(here, &config, name).await;
            let ready = said.iter().find(|(of, _, _)| of == "Ready").unwrap();
            assert_ne!(ready.1, "Ready", "{kind} {name}: {said:?}");
            assert_eq!(here.secret(&config).await, None, "{kind} {name}");
        }
    }
    assert!(tried >= 6, "{tried}");
    for (place, text) in [("what the user sees", user.sees()), ("output", running.output())] {
        for needle in &needles {
            assert_eq!(
                needle.found_in(text.as_bytes()),
                None,
                "{} in {place}",
                needle.what
            );
        }
    }
    let after = there.plane.list("Secret", &there.namespace).await;
    assert_eq!(after, before);
}

#[test]
fn the_api_has_no_field_for_a_namespace() {
    fn fields(schema: &Value, into: &mut BTreeSet<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, inner) in properties {
                into.insert(name.clone());
                fields(inner, into);
            }
        }
        for inner in [&schema["items"], &schema["additionalProperties"]] {
            if inner.is_object() {
                fields(inner, into);
            }
        }
    }
    let text = std::fs::read_to_string(repository("crds/autounseal.dev.yaml")).unwrap();
    let mut found = BTreeSet::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let crd: Value = serde::Deserialize::deserialize(document).unwrap();
        fields(
            &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"],
            &mut found,
        );
    }
    assert!(
        found.contains("secretKeyRef") && found.contains("podSelector"),
        "{found:?}"
    );
    let wrong: Vec<_> = found
        .iter()
        .filter(|name| name.to_lowercase().contains("namespace"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
