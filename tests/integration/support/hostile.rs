//! A tenant who does all that could slow others down (security rule S19), with the rights of a tenant only.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    kms::{Context, Key, Kms},
    stage::{Stage, random, simple},
};

/// The pause between two edits of the same object: fifty a second, if the apiserver keeps up.
const PAUSE: Duration = Duration::from_millis(20);

/// The tenant. What it keeps editing is edited until it is dropped.
pub struct Hostile {
    /// Its namespace.
    pub stage: Stage,
    /// The key that opens, under which one source is written anew all the time.
    pub busy: Key,
    /// The key that never answers.
    pub silent: Key,
    /// SealConfigs that never become Ready.
    pub failing: Vec<String>,
    edits: JoinSet<()>,
}

impl Hostile {
    /// Moves in: so many SealConfigs whose KMS hangs, half as many whose KMS throttles, half as many that name a
    /// ServiceAccount that does not exist; one source that is too large; and one each whose spec, source and delivered
    /// Secret are edited without end.
    pub async fn begin(stage: Stage, kms: &Kms, size: usize) -> Self {
        let (busy, silent, throttled) = (kms.key(), kms.key(), kms.key());
        let none = Context::new();
        let mut all: Vec<(String, Value)> = Vec::new();
        for index in 0..size {
            let copy = kms.encrypt(&silent, &random(32), &none);
            let name = format!("hangs-{index}");
            all.push((name.clone(), simple(&silent.arn, &copy, &name)));
        }
        for index in 0..size / 2 {
            let copy = kms.encrypt(&throttled, &random(32), &none);
            let name = format!("throttled-{index}");
            all.push((name.clone(), simple(&throttled.arn, &copy, &name)));
            let name = format!("nobody-{index}");
            let mut spec = simple(&busy.arn, &copy, &name);
            spec["seals"][0]["awskms"]["credentials"] = json!({"serviceAccountRef": {"name": "nobody"}});
            all.push((name, spec));
        }
        let large = BASE64.encode(&random(64 * 1024 + 1));
        stage.secret_of("large", &[("copy", large.as_bytes())]).await;
        all.push(("large".into(), from_source(&busy, "large", "large-out")));
        kms.set_state(&silent, "Silent");
        kms.set_state(&throttled, "Throttled");
        for (name, spec) in &all {
            stage.apply(name, spec).await;
        }
        let mut hostile = Self {
            failing: all.into_iter().map(|(name, _)| name).collect(),
            edits: JoinSet::new(),
            busy,
            silent,
            stage,
        };
        hostile.edit(kms).await;
        hostile
    }

    async fn edit(&mut self, kms: &Kms) {
        // Ciphertexts in turn, each of other bytes.
        let fresh = |key: &Key| -> Vec<String> {
            let one = || BASE64.encode(&kms.encrypt(key, &random(32), &Context::new()));
            (0..256).map(|_| one()).collect()
        };
        let (spec_key, fought_key) = (kms.key(), kms.key());
        let (sources, specs) = (fresh(&self.busy), fresh(&spec_key));
        self.stage
            .secret_of("source", &[("copy", sources[0].as_bytes())])
            .await;
        self.stage
            .apply("source", &from_source(&self.busy, "source", "source-out"))
            .await;
        let copy = kms.encrypt(&spec_key, &random(32), &Context::new());
        self.stage
            .apply("spec", &simple(&spec_key.arn, &copy, "spec-out"))
            .await;
        let copy = kms.encrypt(&fought_key, &random(32), &Context::new());
        self.stage
            .apply("fought", &simple(&fought_key.arn, &copy, "fought-out"))
            .await;

        let patch = |kind: &'static str, name: &'static str, of: Box<dyn Fn(usize) -> Value + Send>| {
            let (plane, namespace) = (self.stage.plane.clone(), self.stage.namespace.clone());
            async move {
                for turn in 0.. {
                    // What is not there yet is fought over later.
                    let _ = plane.try_patch(kind, &namespace, name, &of(turn)).await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        self.edits.spawn(patch(
            "Secret",
            "source",
            Box::new(move |turn| json!({"data": {"copy": BASE64.encode(sources[turn % sources.len()].as_bytes())}})),
        ));
        self.edits.spawn(patch(
            "SealConfig",
            "spec",
            Box::new(move |turn| {
                let copy = &specs[turn % specs.len()];
                json!({"spec": {"keys": [{"name": "root", "wrapped": [{"seal": "aws", "format": "kms", "inline": copy}]}]}})
            }),
        ));
        self.edits.spawn(patch(
            "Secret",
            "fought-out",
            Box::new(|turn| json!({"data": {"root": BASE64.encode(turn.to_string().as_bytes())}})),
        ));
    }
}

/// A spec whose copy lies in a Secret.
fn from_source(key: &Key, secret: &str, target: &str) -> Value {
    let mut spec = simple(&key.arn, b"", target);
    spec["keys"][0]["wrapped"] = json!([{
        "seal": "aws", "format": "kms", "secretKeyRef": {"name": secret, "key": "copy"},
    }]);
    spec
}
