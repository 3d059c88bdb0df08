//! The SealConfigs that live through it, and what their users do to them.

use autounseal::seal::{KeyBytes, check_value::check_value};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{
    ledger::{BROUGHT, MADE, place},
    link::Link,
};
use crate::support::{
    kms::{Context, Key, Kms},
    stage::random,
};

/// The secret access key that both KMSes are asked with.
pub const ACCESS_SECRET: &str = "chaos+secret/access/key0123456789abcdefgh";

/// The seals' names: one in each KMS, and a third one that comes and goes.
pub const SEALS: [&str; 3] = ["one", "two", "three"];

/// A KMS and the network before it.
pub struct Cloud {
    /// The KMS.
    pub kms: Kms,
    /// The way to it.
    pub link: Link,
    /// Its first key, and one more.
    pub keys: [Key; 2],
}

impl Cloud {
    /// With two keys.
    pub async fn start(seed: u64) -> Self {
        let kms = Kms::start();
        let port = kms.url().rsplit(':').next().unwrap().parse().unwrap();
        let link = Link::before(port, seed).await;
        let keys = [kms.key(), kms.key()];
        Self { kms, link, keys }
    }
}

/// The cloud and the key behind a seal.
pub fn behind<'c>(clouds: &'c [Cloud; 2], seal: &str) -> (&'c Cloud, &'c Key) {
    match seal {
        "one" => (&clouds[0], &clouds[0].keys[0]),
        "two" => (&clouds[1], &clouds[1].keys[0]),
        _ => (&clouds[0], &clouds[0].keys[1]),
    }
}

/// A seal, as a SealConfig names it.
pub fn seal(clouds: &[Cloud; 2], name: &str, priority: usize, disabled: bool) -> Value {
    let (cloud, key) = behind(clouds, name);
    json!({"name": name, "priority": priority, "disabled": disabled, "awskms": {
        "kmsKeyID": key.arn, "region": "us-east-1", "endpoint": cloud.link.url(),
        "credentials": {"secretRef": {"name": "aws"}}}})
}

/// One SealConfig, as its user wants it.
pub struct Wanted {
    /// Its name, and its Secret's.
    pub name: String,
    /// It has a key that the operator makes.
    pub makes: bool,
    /// It has a key that is brought, under so many seals.
    pub brings: usize,
    /// How often a new version was asked for.
    pub trigger: u32,
    /// What is brought.
    pub value: Vec<u8>,
    copies: Vec<Value>,
    /// Which of the first two seals is disabled.
    pub disabled: Option<usize>,
    /// Whether the third seal is there.
    pub third: bool,
}

impl Wanted {
    /// As it begins.
    pub fn new(name: &str, makes: bool, brings: usize) -> Self {
        Self {
            name: name.to_owned(),
            makes,
            brings,
            trigger: 0,
            value: Vec::new(),
            copies: Vec::new(),
            disabled: None,
            third: false,
        }
    }

    /// Brings other bytes.
    pub fn renew(&mut self, clouds: &[Cloud; 2]) {
        self.value = random(32);
        self.rewrap(clouds);
    }

    /// Brings the same bytes under new ciphertexts.
    pub fn rewrap(&mut self, clouds: &[Cloud; 2]) {
        self.copies = SEALS[..self.brings]
            .iter()
            .map(|seal| {
                let (cloud, key) = behind(clouds, seal);
                let ciphertext = cloud.kms.encrypt(key, &self.value, &Context::new());
                json!({"seal": seal, "format": "kms", "inline": BASE64.encode(&ciphertext)})
            })
            .collect();
    }

    /// The seals that wrap.
    pub fn enabled(&self) -> Vec<&'static str> {
        let there = if self.third { 3 } else { 2 };
        (0..there)
            .filter(|at| self.disabled != Some(*at))
            .map(|at| SEALS[at])
            .collect()
    }

    /// The spec.
    pub fn spec(&self, clouds: &[Cloud; 2], namespace: &str) -> Value {
        let there = if self.third { 3 } else { 2 };
        let seals: Vec<Value> = SEALS[..there]
            .iter()
            .enumerate()
            .map(|(at, name)| seal(clouds, name, 10 * (at + 1), self.disabled == Some(at)))
            .collect();
        let (mut keys, mut data) = (Vec::new(), Vec::new());
        if self.makes {
            keys.push(json!({"name": MADE, "generate": {"bytes": 32, "keepPrevious": 1,
                "rotation": {"trigger": format!("t{}", self.trigger), "after": "48h"}}}));
            data.push(json!({"name": "current", "key": {"name": MADE}}));
            data.push(json!({"name": "previous", "key": {"name": MADE, "version": "previous"}}));
        }
        if self.brings > 0 {
            // Pinned, as a KMS that answers with other bytes must be told from one that answers rightly.
            let pin = check_value(
                &KeyBytes::new(self.value.clone()),
                &place(namespace, &self.name, BROUGHT),
            );
            keys.push(json!({"name": BROUGHT, "checkValue": pin, "wrapped": self.copies}));
            data.push(json!({"name": BROUGHT, "key": {"name": BROUGHT}}));
        }
        json!({"seals": seals, "keys": keys,
            "targets": [{"name": "app", "secret": {"name": self.name, "data": data}}]})
    }
}
