//! The usual scene on OCI: a namespace, the verifying OCI server with one key, a user's API key in Secret `oci`.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{
    kms::Context,
    oci::{ApiKey, Key, Oci, Options},
    operator::{Operator, Running},
    plane::within,
    stage::{Stage, condition, speaks_of_now, unique},
};

/// What a cluster admin puts on a namespace that may use the operator's own identity.
pub const LABEL: &str = "autounseal.dev/operator-identity";

/// The keys that it may use so.
pub const GRANTS: &str = "autounseal.dev/operator-identity-grants";

/// The usual scene.
pub struct OciScene {
    /// Namespace and control plane.
    pub stage: Stage,
    /// Vault, identity services, metadata.
    pub oci: Oci,
    /// Its first key.
    pub key: Key,
    /// Whose API key is in Secret `oci`.
    pub user: ApiKey,
    class: String,
}

/// A SealConfig that has delivered, so that it can be shown what a fault leaves of it.
pub struct Delivered {
    /// The SealConfig's and the Secret's name.
    pub name: String,
    /// As it was applied.
    pub spec: Value,
    /// What the Secret holds.
    pub bytes: Vec<u8>,
    before: Value,
}

impl OciScene {
    /// Sets it up, without an operator and without a right to the operator's identity.
    pub async fn new(name: &str) -> Self {
        Self::with(name, &Options::default()).await
    }

    /// The same with a server of this kind.
    pub async fn with(name: &str, options: &Options) -> Self {
        Self::set_up(name, options, |_| json!({})).await
    }

    /// In a namespace that may use the operator's identity for the first key.
    pub async fn granted(name: &str) -> Self {
        Self::set_up(
            name,
            &Options::default(),
            |key| json!({"labels": {LABEL: "allowed"}, "annotations": {GRANTS: key.id}}),
        )
        .await
    }

    /// In a namespace with the metadata that this says.
    pub async fn set_up(name: &str, options: &Options, metadata: impl Fn(&Key) -> Value) -> Self {
        let oci = Oci::with(options);
        let key = oci.key();
        let stage = Stage::bare(name, &metadata(&key)).await;
        let user = oci.api_key("pkcs8", None);
        let scene = Self {
            stage,
            oci,
            key,
            user,
            class: format!("c{}", unique()),
        };
        scene.api_key_secret("oci", &scene.user, &[]).await;
        scene
    }

    /// An operator of this scene: it watches all namespaces, as labels count for such an operator only, and takes the
    /// scene's own class.
    pub fn operator(&self) -> Operator {
        let endpoints = [self.oci.url("crypto"), self.oci.url("management")].join(",");
        Operator::new()
            .flags(["--controller-class", &self.class])
            .flags(["--allowed-endpoints", &endpoints])
            .flags(["--log-format", "json", "--log-level", "debug"])
            .env("OCI_METADATA_BASE_URL", self.oci.url("metadata"))
            .env("OCI_SDK_AUTH_CLIENT_REGION_URL", self.oci.url("federation"))
    }

    /// Starts one.
    pub fn start(&self) -> Running {
        self.operator().start()
    }

    /// Writes an API key as single entries, with more or other entries.
    pub async fn api_key_secret(&self, name: &str, user: &ApiKey, more: &[(&str, &str)]) {
        let mut entries = json!({"user": user.user, "tenancy": user.tenancy, "fingerprint": user.fingerprint,
            "region": user.region, "key.pem": user.pem});
        for (entry, value) in more {
            entries[*entry] = json!(value);
        }
        self.entries(name, &entries).await;
    }

    /// Writes a Secret of these texts.
    pub async fn entries(&self, name: &str, entries: &Value) {
        let mut secret = self.stage.object("v1", "Secret", name);
        secret["stringData"] = entries.clone();
        self.stage
            .plane
            .delete("Secret", &self.stage.namespace, name)
            .await;
        self.stage.plane.create(&secret).await;
    }

    /// A copy that is the vault's own ciphertext.
    pub fn kms_copy(&self, bytes: &[u8]) -> Value {
        json!({"format": "kms", "inline": self.oci.encrypt(&self.key, bytes, &Context::new())})
    }

    /// The same with associatedData.
    pub fn kms_copy_with(&self, bytes: &[u8], context: &[(&str, &str)]) -> Value {
        let context: Context = context
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        json!({"format": "kms", "inline": self.oci.encrypt(&self.key, bytes, &context), "context": context})
    }

    /// A copy as Vault, OpenBao and Boundary keep it.
    pub fn blob_copy(&self, bytes: &[u8]) -> Value {
        json!({"format": "blobinfo", "inline": BASE64.encode(&self.oci.wrapped(&self.key, bytes))})
    }

    /// One seal `oci`, one key `root` of this copy, one target; `null` leaves credentials out.
    pub fn spec_as(&self, credentials: &Value, copy: &Value, secret: &str) -> Value {
        let mut copy = copy.clone();
        copy["seal"] = json!("oci");
        let mut spec = json!({
            "controllerClass": self.class,
            "seals": [{"name": "oci", "ocikms": {
                "keyID": self.key.id,
                "cryptoEndpoint": self.oci.url("crypto"), "managementEndpoint": self.oci.url("management"),
            }}],
            "keys": [{"name": "root", "wrapped": [copy]}],
            "targets": [{"name": "app", "secret": {"name": secret}}],
        });
        if !credentials.is_null() {
            spec["seals"][0]["ocikms"]["credentials"] = credentials.clone();
        }
        spec
    }

    /// A spec that delivers these bytes into the Secret by the API key of Secret `oci`.
    pub fn spec(&self, secret: &str, bytes: &[u8]) -> Value {
        self.spec_as(&by_secret("oci"), &self.kms_copy(bytes), secret)
    }

    /// Applies the spec and waits for its Secret of the same name.
    pub async fn deliver(&self, name: &str, spec: Value, bytes: &[u8]) -> Delivered {
        self.stage.apply(name, &spec).await;
        self.stage.delivered(name, &[("root", bytes)]).await;
        self.stage.ready(name).await;
        Delivered {
            name: name.to_owned(),
            spec,
            bytes: bytes.to_vec(),
            before: self.stage.whole_secret(name).await,
        }
    }

    /// Wraps the same bytes anew, so that the vault must be asked again.
    pub fn rewrapped(&self, delivered: &Delivered) -> Value {
        let mut spec = delivered.spec.clone();
        let copy = &mut spec["keys"][0]["wrapped"][0];
        let anew = if copy["format"] == "blobinfo" {
            self.blob_copy(&delivered.bytes)
        } else {
            let context: Context = serde_json::from_value(copy["context"].clone()).unwrap_or_default();
            json!({"inline": self.oci.encrypt(&self.key, &delivered.bytes, &context)})
        };
        copy["inline"] = anew["inline"].clone();
        spec
    }

    /// Has the vault asked again, waits for one of these reasons, and holds the operator to the last good Secret; gives
    /// back the message.
    pub async fn fails(&self, delivered: &Delivered, reason: &str) -> String {
        self.fails_with(delivered, &self.rewrapped(delivered), reason)
            .await
    }

    /// The same by another spec.
    pub async fn fails_with(&self, delivered: &Delivered, spec: &Value, reason: &str) -> String {
        self.stage.apply(&delivered.name, spec).await;
        let message = self.not_ready(&delivered.name, reason).await;
        self.untouched(delivered).await;
        message
    }

    /// The Secret is as it was delivered, and was not even written again.
    pub async fn untouched(&self, delivered: &Delivered) {
        let Delivered {
            name, bytes, before, ..
        } = delivered;
        self.stage.delivered(name, &[("root", bytes)]).await;
        let now = self.stage.whole_secret(name).await;
        assert_eq!(
            now["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"],
            "{name}: the last good Secret was written again"
        );
    }

    /// Has the vault asked again, and waits until all is well.
    pub async fn heals(&self, delivered: &Delivered) {
        self.stage
            .apply(&delivered.name, &self.rewrapped(delivered))
            .await;
        self.stage.ready(&delivered.name).await;
    }

    /// Takes the delivered Secret away and waits for its repair.
    pub async fn repaired(&self, name: &str, bytes: &[u8]) {
        self.stage
            .plane
            .delete("Secret", &self.stage.namespace, name)
            .await;
        self.stage.delivered(name, &[("root", bytes)]).await;
    }

    /// Waits until Ready is not True for this reason; gives back a message that is a sentence.
    pub async fn not_ready(&self, name: &str, reason: &str) -> String {
        let what = format!("{name} not Ready: {reason}");
        // Long enough for an operation that uses its whole time, on a machine that others use, too.
        let message = within(Duration::from_mins(1), &what, async || {
            let config = self.stage.config(name).await;
            let ready = condition(&config, "Ready");
            if ready["status"] != "True" && ready["reason"] == reason && speaks_of_now(&config) {
                Ok(ready["message"].as_str().unwrap_or_default().to_owned())
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await;
        println!("{name}: {reason}: {message}");
        assert!(message.len() > 20, "{name}: a sentence is wanted: {message}");
        assert!(
            message.contains("oci"),
            "{name}: the seal is not named: {message}"
        );
        message
    }

    /// How often the server was asked for this; `Decrypt` and `GetKey` by their paths.
    pub fn decrypts(&self) -> usize {
        self.oci.count("crypto", "/decrypt")
    }

    /// Every request that was not for the metadata service, as `service path`.
    pub fn sent(&self) -> Vec<String> {
        self.oci
            .log()
            .iter()
            .filter(|entry| entry["service"] != "metadata")
            .map(|entry| format!("{} {}", entry["service"], entry["path"]))
            .collect()
    }
}

/// `credentials` that name a Secret with an API key.
pub fn by_secret(name: &str) -> Value {
    json!({"apiKey": {"secretRef": {"name": name}}})
}
