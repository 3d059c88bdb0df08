//! `cargo xtask bench oci`: what OCI costs: signatures, calls for tokens, calls to the vault.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot go on should say so and end; figures are its output"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]
#![allow(dead_code, reason = "the modules are shared with the integration tests")]

#[path = "../tests/integration/support/blob.rs"]
mod blob;
mod common;
#[path = "../tests/integration/support/http.rs"]
mod http;
#[path = "../tests/integration/support/kms.rs"]
mod kms;
#[path = "../tests/integration/support/oci.rs"]
mod oci;
#[path = "../tests/integration/support/operator.rs"]
mod operator;
#[path = "../tests/integration/support/plane.rs"]
mod plane;

use std::{
    hint::black_box,
    process::Command,
    time::{Duration, Instant},
};

use autounseal::provider::oci::signature::{self, Form, Unsigned};
use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::RSA_PKCS1_SHA256,
};
use data_encoding::BASE64;
use serde_json::json;

use crate::{
    common::{binary, is_ready, row},
    oci::{Key, Oci},
    operator::Operator,
    plane::{Plane, within},
};

/// SealConfigs that share one key and one identity.
const SHARING: usize = 20;
/// Between two deletions: with all of the above in turn, each is repaired less than three times a minute.
const PAUSE: Duration = Duration::from_millis(1500);
/// How long one core signs.
const SIGNING: Duration = Duration::from_secs(3);

struct Settings {
    /// Life of a session token in the test server.
    life: Duration,
    /// How long the identity is kept busy.
    busy: Duration,
}

fn settings() -> Option<Settings> {
    let mut settings = Settings {
        life: Duration::from_secs(20),
        busy: Duration::from_mins(1),
    };
    let mut asked = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut seconds = || {
            let number = arguments.next().and_then(|value| value.parse().ok());
            Duration::from_secs(number.unwrap_or_else(|| panic!("{argument} needs a number of seconds")))
        };
        match argument.as_str() {
            "--bench" => asked = true,
            "--life" => settings.life = seconds(),
            "--busy" => settings.busy = seconds(),
            other => panic!("unknown argument {other}; known: --life SECONDS, --busy SECONDS"),
        }
    }
    asked.then_some(settings)
}

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    let Some(settings) = settings() else { return };
    println!("\nbench oci\n");
    signatures();
    let bench = Bench::prepare().await;
    bench.calls().await;
    bench.tokens(&settings).await;
    println!();
}

/// One core, one request after the other, as the operator signs them: with the body's digest and the date.
fn signatures() {
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let body =
        json!({"keyId": "ocid1.key.oc1.eu-frankfurt-1.v.k", "ciphertext": "A".repeat(120)}).to_string();
    let request = Unsigned {
        method: "POST",
        target: "/20180608/decrypt",
        host: "v-crypto.kms.eu-frankfurt-1.oraclecloud.com",
        content_type: "application/json",
        body: body.as_bytes(),
    };
    let mut date = 1_800_000_000;
    let ours = rate(|| {
        date += 1;
        let date = signature::http_date(date);
        let headers = signature::headers(&key, "t/u/f", black_box(&request), &date, Form::Service);
        black_box(headers.unwrap());
    });
    let (random, mut buffer) = (SystemRandom::new(), vec![0; key.public_modulus_len()]);
    let bare = rate(|| {
        key.sign(&RSA_PKCS1_SHA256, &random, black_box(b"text"), &mut buffer)
            .unwrap();
    });
    let per_core = |rate: f64| format!("{rate:.0} /s on one core");
    let openssl = openssl();
    let beside = |rate: f64| match &openssl {
        Ok(theirs) => format!("ratio {:.2}", rate / theirs),
        Err(why) => why.clone(),
    };
    row("signed requests, RSA-2048", per_core(ours), &beside(ours));
    row(
        "bare signatures of the same library",
        per_core(bare),
        &beside(bare),
    );
    if let Ok(theirs) = openssl {
        row("bare signatures, openssl speed rsa2048", per_core(theirs), "");
    }
}

/// How often a second of processor time, as openssl counts: whoever else uses the machine does not matter.
fn rate(mut once: impl FnMut()) -> f64 {
    let (start, mut count) = (processor_time(), 0_u32);
    loop {
        once();
        count += 1;
        let took = processor_time().saturating_sub(start);
        if took >= SIGNING {
            return f64::from(count) / took.as_secs_f64();
        }
    }
}

/// Of this thread.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = text.split(' ').next().unwrap().parse().unwrap();
    Duration::from_nanos(nanoseconds)
}

/// Bare signatures a second, by the column that is headed `sign/s`.
fn openssl() -> Result<f64, String> {
    let seconds = SIGNING.as_secs().to_string();
    let output = Command::new("openssl")
        .args(["speed", "-seconds", &seconds, "rsa2048"])
        .output()
        .map_err(|error| format!("nothing to compare with: openssl cannot be run ({error})"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let columns = |line: &'static str| text.lines().find(|text| text.contains(line));
    let found = || {
        let at = columns("sign/s")?
            .split_whitespace()
            .position(|name| name == "sign/s")?;
        let (_, values) = columns("2048 bits")?.split_once("bits")?;
        values.split_whitespace().nth(at)?.parse().ok()
    };
    found().ok_or_else(|| "nothing to compare with: openssl speed printed no sign/s".to_owned())
}

struct Bench {
    plane: Plane,
    oci: Oci,
    key: Key,
    operator: Operator,
    namespace: String,
}

impl Bench {
    async fn prepare() -> Self {
        let plane = Plane::connect().await;
        let oci = Oci::start();
        let key = oci.key();
        let stamp = jiff::Timestamp::now().as_millisecond();
        let namespace = format!("bench-oci-{stamp}");
        plane
            .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
            .await;
        // The node's identity, granted by the admin.
        let mut grants = json!({});
        grants[&namespace] = json!([key.id]);
        let file = std::env::temp_dir().join(format!("{namespace}-grants.json"));
        std::fs::write(&file, grants.to_string()).unwrap();
        let endpoints = format!("{},{}", oci.url("crypto"), oci.url("management"));
        let operator = Operator::new()
            .env("OCI_METADATA_BASE_URL", oci.url("metadata"))
            .env("OCI_SDK_AUTH_CLIENT_REGION_URL", oci.url("federation"))
            .flags([
                "--watch-namespaces",
                &namespace,
                "--operator-identity-namespaces",
                &namespace,
                "--operator-identity-grants",
                file.to_str().unwrap(),
                "--allowed-endpoints",
                &endpoints,
            ]);
        Self {
            plane,
            oci,
            key,
            operator,
            namespace,
        }
    }

    /// A SealConfig with a copy of its own.
    async fn create(&self, name: &str) {
        let wrapped = self.oci.wrapped(&self.key, format!("{name:0>32}").as_bytes());
        let object = json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "seals": [{"name": "oci", "ocikms": {
                    "keyID": self.key.id, "cryptoEndpoint": self.oci.url("crypto"),
                    "managementEndpoint": self.oci.url("management"), "credentials": {"instancePrincipal": {}},
                }}],
                "keys": [{"name": "root", "wrapped": [
                    {"seal": "oci", "format": "blobinfo", "inline": BASE64.encode(&wrapped)},
                ]}],
                "targets": [{"name": "app", "secret": {"name": name}}],
            },
        });
        self.plane.create(&object).await;
    }

    async fn wait(&self, name: &str) {
        within(Duration::from_secs(40), name, async || {
            let config = self.plane.get("SealConfig", &self.namespace, name).await.unwrap();
            let ready = is_ready(&config);
            ready.then_some(()).ok_or_else(|| config["status"].to_string())
        })
        .await;
    }

    /// What many SealConfigs with one key and one identity ask of OCI.
    async fn calls(&self) {
        self.oci.clear_log();
        for name in names() {
            self.create(&name).await;
        }
        let running = self.operator.start();
        for name in names() {
            self.wait(&name).await;
        }
        running.stop();
        let decrypts = self.oci.count("crypto", "/20180608/decrypt");
        let get_keys = self.oci.count("management", "/20180608/keys/");
        let tokens = self.oci.count("federation", "/v1/x509");
        row(
            &format!("calls of {SHARING} SealConfigs, one key and identity"),
            format!(
                "{:.2} decrypt each, {get_keys} get-key and {tokens} federation in all",
                decrypts as f64 / SHARING as f64
            ),
            "aim 1 each, 1 and 1 in all",
        );
    }

    /// How often one identity in use asks for a token. Each deleted Secret is delivered again, with a decrypt; they take
    /// turns, for who deletes one Secret again and again is taken for another writer.
    async fn tokens(&self, settings: &Settings) {
        self.oci.token_life(settings.life.as_secs());
        self.oci.clear_log();
        let running = self.operator.start();
        let start = Instant::now();
        for name in names().cycle() {
            if start.elapsed() >= settings.busy {
                break;
            }
            self.plane.delete("Secret", &self.namespace, &name).await;
            within(Duration::from_secs(40), "the Secret again", async || {
                let secret = self.plane.get("Secret", &self.namespace, &name).await;
                secret.map(|_| ()).ok_or_else(|| "gone".to_owned())
            })
            .await;
            tokio::time::sleep(PAUSE).await;
        }
        let took = start.elapsed().as_secs_f64();
        running.stop();
        let decrypts = self.oci.count("crypto", "/20180608/decrypt");
        let refused = self
            .oci
            .log()
            .iter()
            .filter(|entry| entry["status"] == 401)
            .count();
        // The first one is not a renewal.
        let renewals = self.oci.count("federation", "/v1/x509") - 1;
        let life = settings.life.as_secs_f64();
        let per_life = renewals as f64 * life / took;
        row(
            "an identity in use, renewals of its token",
            format!(
                "{renewals} in {took:.0} s at {life:.0} s a token: {per_life:.2} a life, {:.0} /h",
                renewals as f64 * 3600.0 / took
            ),
            &format!("aim 1 a life; {decrypts} decrypts, {refused} refused"),
        );
    }
}

fn names() -> impl Iterator<Item = String> + Clone {
    (0..SHARING).map(|index| format!("c-{index}"))
}
