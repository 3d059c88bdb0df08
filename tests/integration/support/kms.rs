//! A scripted KMS: real AES-GCM under keys of its own, real checks of the encryption context, and
//! on demand every fault that a KMS can show. What moto cannot tell (states, errors, counts) is told here.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest, rand,
};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

use super::http::{Reply, Request, Server};

/// An encryption context.
pub type Context = BTreeMap<String, String>;

/// The account of keys unless said otherwise.
pub const ACCOUNT: &str = "123456789012";

/// What the server does instead of the right thing.
#[derive(Clone, Debug)]
pub enum Act {
    /// An error of the KMS's own vocabulary.
    Error {
        /// HTTP status.
        status: u16,
        /// `…Exception`.
        code: &'static str,
    },
    /// `ThrottlingException` with a hint in seconds.
    Throttle(Option<u32>),
    /// 500 without a word.
    ServerFault,
    /// Never answers.
    Hang,
    /// Answers rightly, after a while.
    Late(Duration),
    /// Sends half of the right answer.
    CloseMidAnswer,
    /// Answers 200 with what is no JSON.
    Garbage,
    /// Answers with bytes that are no HTTP.
    NotHttp,
    /// Answers 200 with several MiB.
    Flood,
    /// The right bytes, said to be opened by another key.
    ClaimKey(String),
    /// Another plaintext than what was wrapped.
    OtherBytes(Vec<u8>),
    /// An error that repeats headers and body of the request, in its code, message and headers.
    EchoRequest,
    /// An error that repeats the plaintext, raw and encoded.
    EchoPlaintext,
}

impl Act {
    /// An error as the KMS would say it.
    pub fn error(status: u16, code: &'static str) -> Self {
        Act::Error { status, code }
    }
}

/// One key of the scripted KMS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// `arn:aws:kms:…:key/…`.
    pub arn: String,
    /// The part after `key/`.
    pub id: String,
}

impl Key {
    /// Whether it made this ciphertext.
    pub fn wrapped(&self, ciphertext: &[u8]) -> bool {
        ciphertext.starts_with(&id_bytes(self))
    }
}

struct KeyState {
    key: Key,
    /// Newest last: what an older one has encrypted opens still.
    materials: Vec<[u8; 32]>,
    state: &'static str,
    /// A key type that takes any context for the right one.
    ignores_context: bool,
}

/// One request that was answered.
#[derive(Clone, Debug)]
pub struct Call {
    /// `Decrypt`, `Encrypt`, `DescribeKey`.
    pub operation: String,
    /// `KeyId` of the request.
    pub key_id: Option<String>,
    /// SHA-256 is not needed here: the ciphertext itself tells which copy it was.
    pub ciphertext: Vec<u8>,
    /// Who signed.
    pub access_key_id: String,
    /// For which region.
    pub region: String,
    /// `X-Amz-Security-Token`.
    pub session_token: Option<String>,
    /// When it arrived.
    pub at: Instant,
}

#[derive(Default)]
struct State {
    keys: Vec<KeyState>,
    aliases: HashMap<String, String>,
    calls: Vec<Call>,
    scripts: HashMap<&'static str, VecDeque<Act>>,
    standing: HashMap<&'static str, Act>,
    malformed: Vec<String>,
    limit: Option<Limit>,
}

/// A quota: so many requests a second, and as many at once.
struct Limit {
    per_second: f64,
    left: f64,
    at: Instant,
    refused: usize,
}

impl Limit {
    fn admits(&mut self) -> bool {
        let now = Instant::now();
        let earned = self.per_second * now.duration_since(self.at).as_secs_f64();
        self.left = (self.left + earned).min(self.per_second);
        self.at = now;
        let admits = self.left >= 1.0;
        if admits {
            self.left -= 1.0;
        } else {
            self.refused += 1;
        }
        admits
    }
}

/// The server.
pub struct Kms {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl Kms {
    /// Starts it on a free loopback port, with no keys.
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let server = Server::start(move |request| answer(&shared, &request));
        Self { server, state }
    }

    /// What it answers, for a server that stands before it.
    pub fn reply(&self, request: &Request) -> Reply {
        answer(&self.state, request)
    }

    /// Whether it has a key of that ARN or id, or an alias of that name.
    pub fn knows(&self, name: &str) -> bool {
        self.has_alias(name)
            || self
                .state()
                .keys
                .iter()
                .any(|k| k.key.arn == name || k.key.id == name)
    }

    /// Whether it has such an alias.
    pub fn has_alias(&self, name: &str) -> bool {
        self.state().aliases.contains_key(name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Makes a key in `us-east-1` of the usual account.
    pub fn key(&self) -> Key {
        self.key_in("us-east-1", ACCOUNT)
    }

    /// Makes a key.
    pub fn key_in(&self, region: &str, account: &str) -> Key {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).unwrap();
        let hex = HEXLOWER.encode(&bytes);
        let id = format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        );
        let key = Key {
            arn: format!("arn:aws:kms:{region}:{account}:key/{id}"),
            id,
        };
        let mut material = [0; 32];
        rand::fill(&mut material).unwrap();
        self.state().keys.push(KeyState {
            key: key.clone(),
            materials: vec![material],
            state: "Enabled",
            ignores_context: false,
        });
        key
    }

    /// Points `alias/…` at a key; again to move it.
    pub fn alias(&self, alias: &str, key: &Key) {
        self.state().aliases.insert(alias.to_owned(), key.arn.clone());
    }

    /// Gives a key new material, as a rotation does.
    pub fn rotate(&self, key: &Key) {
        let mut material = [0; 32];
        rand::fill(&mut material).unwrap();
        if let Some(found) = self.state().keys.iter_mut().find(|k| k.key == *key) {
            found.materials.push(material);
        }
    }

    /// `Enabled`, `Disabled`, `PendingDeletion`, `PendingImport`, `Unavailable`, `Gone`; or
    /// `Silent`: no answer for it ever; or `Throttled`: always `ThrottlingException`.
    pub fn set_state(&self, key: &Key, to: &'static str) {
        if let Some(found) = self.state().keys.iter_mut().find(|k| k.key == *key) {
            found.state = to;
        }
    }

    /// From now on the key takes any context for the right one.
    pub fn ignore_context(&self, key: &Key) {
        if let Some(found) = self.state().keys.iter_mut().find(|k| k.key == *key) {
            found.ignores_context = true;
        }
    }

    /// What `aws kms encrypt` would answer; counts as no call.
    pub fn encrypt(&self, key: &Key, plaintext: &[u8], context: &Context) -> Vec<u8> {
        let state = self.state();
        let key = state.keys.iter().find(|k| k.key == *key).unwrap();
        seal(key, plaintext, context)
    }

    /// The next call of this operation goes so; several queue up.
    pub fn next(&self, operation: &'static str, act: Act) {
        self.state().scripts.entry(operation).or_default().push_back(act);
    }

    /// Every call of this operation goes so, until `heal`.
    pub fn always(&self, operation: &'static str, act: Act) {
        self.state().standing.insert(operation, act);
    }

    /// Forgets every script.
    pub fn heal(&self) {
        let mut state = self.state();
        state.scripts.clear();
        state.standing.clear();
    }

    /// From now on only so many requests a second are answered, the others with `ThrottlingException`; `None` lifts it.
    pub fn limit(&self, per_second: Option<f64>) {
        self.state().limit = per_second.map(|per_second| Limit {
            per_second,
            left: per_second,
            at: Instant::now(),
            refused: 0,
        });
    }

    /// Requests that the limit has refused.
    pub fn refused(&self) -> usize {
        self.state().limit.as_ref().map_or(0, |limit| limit.refused)
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Calls of one operation so far.
    pub fn count(&self, operation: &str) -> usize {
        self.state()
            .calls
            .iter()
            .filter(|call| call.operation == operation)
            .count()
    }

    /// Requests without a well-formed signature, or of an unknown operation.
    pub fn malformed(&self) -> Vec<String> {
        self.state().malformed.clone()
    }
}

/// 16 bytes of the key's id, nonce, AES-GCM: our own layout, opaque to the operator.
fn seal(key: &KeyState, plaintext: &[u8], context: &Context) -> Vec<u8> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).unwrap();
    let mut sealed = plaintext.to_vec();
    cipher(key.materials.last().unwrap())
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(canonical(key, context)),
            &mut sealed,
        )
        .unwrap();
    let mut out = id_bytes(&key.key);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&sealed);
    out
}

fn open(key: &KeyState, blob: &[u8], context: &Context) -> Option<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = blob.get(16..16 + NONCE_LEN)?.try_into().ok()?;
    key.materials.iter().find_map(|material| {
        let mut sealed = blob[16 + NONCE_LEN..].to_vec();
        let plaintext = cipher(material)
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(canonical(key, context)),
                &mut sealed,
            )
            .ok()?;
        Some(plaintext.to_vec())
    })
}

fn cipher(material: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, material).unwrap())
}

fn id_bytes(key: &Key) -> Vec<u8> {
    HEXLOWER
        .decode(key.id.replace('-', "").as_bytes())
        .unwrap_or_default()
}

fn canonical(key: &KeyState, context: &Context) -> Vec<u8> {
    let mut out = Vec::new();
    if key.ignores_context {
        return out;
    }
    for (name, value) in context {
        for text in [name, value] {
            out.extend_from_slice(&(text.len() as u64).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

pub fn json_answer(status: u16, body: &Value) -> Reply {
    Reply::new(status, "application/x-amz-json-1.1", body.to_string())
}

pub fn error(status: u16, code: &str) -> Reply {
    json_answer(
        status,
        &json!({"__type": code, "message": format!("scripted {code}")}),
    )
}

/// Access key id and region of a well-formed SigV4 header; the signature itself is proved with moto.
pub fn signer(request: &Request) -> Option<(String, String)> {
    let authorization = request
        .header("authorization")?
        .strip_prefix("AWS4-HMAC-SHA256 ")?;
    let mut parts = authorization.split(',').map(str::trim);
    let credential = parts.next()?.strip_prefix("Credential=")?;
    let signed = parts.next()?.strip_prefix("SignedHeaders=")?;
    let signature = parts.next()?.strip_prefix("Signature=")?;
    let mut scope = credential.split('/');
    let (access_key_id, date, region) = (scope.next()?, scope.next()?, scope.next()?);
    let fits = scope.next()? == "kms"
        && scope.next()? == "aws4_request"
        && request.header("x-amz-date")?.starts_with(date)
        && ["host", "x-amz-date", "x-amz-target"]
            .iter()
            .all(|name| signed.split(';').any(|s| s == *name))
        && request.header("x-amz-security-token").is_some()
            == signed.split(';').any(|s| s == "x-amz-security-token")
        && signature.len() == 64
        && signature.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| (access_key_id.to_owned(), region.to_owned()))
}

/// A signature holds for five minutes to either side, by the KMS's clock, which it tells.
fn out_of_time(request: &Request) -> Option<Reply> {
    let date = request.header("x-amz-date")?;
    let signed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok()?;
    let (signed, now) = (
        signed.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp(),
        jiff::Timestamp::now(),
    );
    if now.duration_since(signed).abs() <= jiff::SignedDuration::from_mins(5) {
        return None;
    }
    let mut reply = error(400, "InvalidSignatureException");
    if let Reply::Answer { headers, .. } = &mut reply {
        headers.push(("date", now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()));
    }
    Some(reply)
}

fn answer(state: &Mutex<State>, request: &Request) -> Reply {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let operation = request
        .header("x-amz-target")
        .and_then(|target| target.strip_prefix("TrentService."))
        .unwrap_or_default()
        .to_owned();
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let Some((access_key_id, region)) = signer(request) else {
        state
            .malformed
            .push(format!("{} {operation}: no signature", request.line));
        return error(400, "MissingAuthenticationTokenException");
    };
    if let Some(refused) = out_of_time(request) {
        return refused;
    }
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    let blob = text("CiphertextBlob")
        .and_then(|blob| BASE64.decode(blob.as_bytes()).ok())
        .unwrap_or_default();
    state.calls.push(Call {
        operation: operation.clone(),
        key_id: text("KeyId"),
        ciphertext: blob.clone(),
        access_key_id,
        region: region.clone(),
        session_token: request.header("x-amz-security-token").map(str::to_owned),
        at: Instant::now(),
    });
    if !state.limit.as_mut().is_none_or(Limit::admits) {
        return error(400, "ThrottlingException");
    }
    let act = state
        .scripts
        .get_mut(operation.as_str())
        .and_then(VecDeque::pop_front)
        .or_else(|| state.standing.get(operation.as_str()).cloned());
    let meant = |key: &&KeyState| {
        let id = id_bytes(&key.key);
        let named = text("KeyId").is_some_and(|name| {
            let arn = state.aliases.get(&name).cloned().unwrap_or(name);
            arn == key.key.arn || arn == key.key.id
        });
        named || body.get("CiphertextBlob").is_some() && blob.starts_with(&id)
    };
    match state.keys.iter().find(meant).map(|key| key.state) {
        Some("Silent") => return Reply::Hang,
        Some("Throttled") => return error(400, "ThrottlingException"),
        _ => {}
    }
    let right = match operation.as_str() {
        "DescribeKey" => describe(&state, &body, &region),
        "Encrypt" => encrypt(&state, &body, &region),
        "Decrypt" => decrypt(&state, &body, &region),
        _ => {
            state
                .malformed
                .push(format!("{} {operation}: unknown operation", request.line));
            Err((400, "UnknownOperationException"))
        }
    };
    match act {
        None => right.map_or_else(|(s, c)| error(s, c), |body| json_answer(200, &body)),
        Some(Act::Late(after)) => {
            let reply = right.map_or_else(|(s, c)| error(s, c), |body| json_answer(200, &body));
            Reply::Late(after, Box::new(reply))
        }
        Some(act) => misbehave(&act, request, right.ok()),
    }
}

type Outcome = Result<Value, (u16, &'static str)>;

fn misbehave(act: &Act, request: &Request, right: Option<Value>) -> Reply {
    let mut right = right.unwrap_or_default();
    match act {
        Act::Error { status, code } => error(*status, code),
        Act::Throttle(hint) => {
            let mut reply = error(400, "ThrottlingException");
            if let (Reply::Answer { headers, .. }, Some(seconds)) = (&mut reply, hint) {
                headers.push(("retry-after", seconds.to_string()));
            }
            reply
        }
        Act::ServerFault => Reply::new(500, "text/html", "<html>oops</html>"),
        Act::Hang | Act::Late(_) => Reply::Hang,
        Act::CloseMidAnswer => Reply::CloseMidAnswer(right.to_string().into_bytes()),
        Act::Garbage => Reply::new(200, "application/x-amz-json-1.1", vec![0x7b, 0xff, 0x00, 0x22]),
        Act::NotHttp => Reply::Garbage(b"SSH-2.0-surprise\r\n".to_vec()),
        Act::Flood => Reply::new(200, "application/x-amz-json-1.1", vec![b' '; 8 << 20]),
        Act::ClaimKey(arn) => {
            right["KeyId"] = json!(arn);
            json_answer(200, &right)
        }
        Act::OtherBytes(bytes) => {
            right["Plaintext"] = json!(BASE64.encode(bytes));
            json_answer(200, &right)
        }
        Act::EchoRequest => {
            let seen = format!(
                "{} {:?} {}",
                request.line,
                request.headers,
                String::from_utf8_lossy(&request.body)
            );
            let header = seen.replace(['\r', '\n'], " ");
            Reply::Answer {
                status: 400,
                headers: vec![
                    ("content-type", "application/x-amz-json-1.1".into()),
                    ("x-amzn-requestid", header.clone()),
                    ("x-amzn-errortype", header),
                ],
                body:
                    json!({"__type": format!("ValidationException {seen}"), "message": seen, "Message": seen})
                        .to_string()
                        .into_bytes(),
            }
        }
        Act::EchoPlaintext => {
            let plaintext = right["Plaintext"].as_str().unwrap_or_default().to_owned();
            let raw = BASE64.decode(plaintext.as_bytes()).unwrap_or_default();
            let said = format!(
                "{plaintext} {} {}",
                HEXLOWER.encode(&raw),
                String::from_utf8_lossy(&raw)
            );
            json_answer(400, &json!({"__type": "ValidationException", "message": said}))
        }
    }
}

fn find<'a>(state: &'a State, name: &str, region: &str) -> Result<&'a KeyState, (u16, &'static str)> {
    let name = match name.split_once(":alias/") {
        Some((_, rest)) => format!("alias/{rest}"),
        None => name.to_owned(),
    };
    let arn = state.aliases.get(&name).cloned().unwrap_or(name);
    state
        .keys
        .iter()
        .find(|k| k.key.arn == arn || k.key.id == arn)
        .filter(|k| k.state != "Gone" && k.key.arn.contains(&format!(":{region}:")))
        .ok_or((400, "NotFoundException"))
}

fn usable(key: &KeyState) -> Result<(), (u16, &'static str)> {
    match key.state {
        "Enabled" => Ok(()),
        "Disabled" => Err((400, "DisabledException")),
        "Unavailable" => Err((500, "KeyUnavailableException")),
        _ => Err((400, "KMSInvalidStateException")),
    }
}

fn describe(state: &State, body: &Value, region: &str) -> Outcome {
    let key = find(state, body["KeyId"].as_str().unwrap_or_default(), region)?;
    let account = key.key.arn.split(':').nth(4).unwrap_or_default();
    Ok(json!({"KeyMetadata": {
        "AWSAccountId": account, "Arn": key.key.arn, "KeyId": key.key.id, "CreationDate": 1_795_380_549.7,
        "Enabled": key.state == "Enabled", "KeyState": key.state, "KeyUsage": "ENCRYPT_DECRYPT",
        "KeySpec": "SYMMETRIC_DEFAULT", "KeyManager": "CUSTOMER", "Origin": "AWS_KMS", "MultiRegion": false,
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"], "Description": "",
        "CurrentKeyMaterialId": material_id(key),
    }}))
}

fn material_id(key: &KeyState) -> String {
    HEXLOWER.encode(digest::digest(&digest::SHA256, key.materials.last().unwrap()).as_ref())
}

fn context_of(body: &Value) -> Context {
    body.get("EncryptionContext")
        .and_then(|context| serde_json::from_value(context.clone()).ok())
        .unwrap_or_default()
}

fn encrypt(state: &State, body: &Value, region: &str) -> Outcome {
    let key = find(state, body["KeyId"].as_str().unwrap_or_default(), region)?;
    usable(key)?;
    let plaintext = BASE64
        .decode(body["Plaintext"].as_str().unwrap_or_default().as_bytes())
        .map_err(|_| (400, "ValidationException"))?;
    Ok(json!({
        "CiphertextBlob": BASE64.encode(&seal(key, &plaintext, &context_of(body))),
        "KeyId": key.key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}

fn decrypt(state: &State, body: &Value, region: &str) -> Outcome {
    let blob = BASE64
        .decode(body["CiphertextBlob"].as_str().unwrap_or_default().as_bytes())
        .map_err(|_| (400, "ValidationException"))?;
    if blob.is_empty() || blob.len() > 6144 {
        return Err((400, "ValidationException"));
    }
    let key = blob
        .get(..16)
        .and_then(|id| state.keys.iter().find(|k| id_bytes(&k.key) == id))
        .ok_or((400, "InvalidCiphertextException"))?;
    if !key.key.arn.contains(&format!(":{region}:")) {
        return Err((400, "InvalidCiphertextException"));
    }
    if let Some(asked) = body.get("KeyId").and_then(Value::as_str)
        && find(state, asked, region)?.key != key.key
    {
        return Err((400, "IncorrectKeyException"));
    }
    if key.state == "Gone" {
        return Err((400, "NotFoundException"));
    }
    usable(key)?;
    let plaintext = open(key, &blob, &context_of(body)).ok_or((400, "InvalidCiphertextException"))?;
    Ok(json!({
        "KeyId": key.key.arn, "Plaintext": BASE64.encode(&plaintext),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    }))
}
