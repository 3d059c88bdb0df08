//! A strict KMS for keys that are imported: it refuses what AWS refuses and LocalStack takes (`protocols.md` 5.4), knows
//! regions, can be down in one of them, and can end the operator at any call. Keys of seals are the scripted KMS's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::AsDer,
    key_wrap::{AES_256, AesKek, KeyWrapPadded},
    rsa::{KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use data_encoding::{BASE64, HEXLOWER};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{
    http::{Reply, Request, Server},
    kms::{ACCOUNT, Kms, error, json_answer, signer},
    knife::Side,
    stage::{random, unique},
};

/// A key as the server holds it.
#[derive(Clone, Debug)]
pub struct Kept {
    pub arn: String,
    pub id: String,
    pub region: String,
    pub spec: String,
    pub usage: String,
    pub multi_region: bool,
    pub state: &'static str,
    pub origin: String,
    pub tags: BTreeMap<String, String>,
    /// What was imported last; kept when the material is deleted, as AWS remembers it.
    pub material: Vec<u8>,
    pub window: Option<i64>,
}

#[derive(Default)]
struct State {
    keys: Vec<Kept>,
    /// By region and name.
    aliases: BTreeMap<(String, String), String>,
    /// Import tokens: whose they are, for which algorithm, whether still good.
    tokens: HashMap<String, (String, String, bool)>,
    down: BTreeSet<String>,
    /// Errors instead of the next answers, by operation.
    scripts: Vec<(String, &'static str)>,
    always: HashMap<String, &'static str>,
    calls: Vec<(String, String)>,
    /// What no honest client does.
    wrong: Vec<String>,
    last_parameters: HashMap<String, Instant>,
    /// The change at which the operator dies.
    cut: Option<(usize, Side)>,
    changes: usize,
}

/// The server.
pub struct Custodian {
    server: Server,
    /// The KMS of seals, whose keys it answers for as well.
    pub seals: Arc<Kms>,
    state: Arc<Mutex<State>>,
    pid: Arc<AtomicU32>,
    struck: Arc<AtomicBool>,
}

/// One pair for all: AWS makes one for each call, which would take this machine a second each.
struct Wrapping {
    public: Vec<u8>,
    private: OaepPrivateDecryptingKey,
}

impl Custodian {
    /// Starts it with no keys.
    pub fn start() -> Self {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa4096).unwrap();
        let wrapping = Wrapping {
            public: private.public_key().as_der().unwrap().as_ref().to_vec(),
            private: OaepPrivateDecryptingKey::new(private).unwrap(),
        };
        let seals = Arc::new(Kms::start());
        let state: Arc<Mutex<State>> = Arc::default();
        let (pid, struck) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let hand = (seals.clone(), state.clone(), pid.clone(), struck.clone());
        let server = Server::start(move |request| {
            let (seals, state, pid, struck) = &hand;
            answer(&request, seals, state, &wrapping, pid, struck)
        });
        Self {
            server,
            seals,
            state,
            pid,
            struck,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Every key of a region.
    pub fn keys(&self, region: &str) -> Vec<Kept> {
        let state = self.state();
        state
            .keys
            .iter()
            .filter(|key| key.region == region)
            .cloned()
            .collect()
    }

    /// Changes a key behind the operator's back.
    pub fn change(&self, arn: &str, change: impl FnOnce(&mut Kept)) {
        let mut state = self.state();
        let key = state.keys.iter_mut().find(|key| key.arn == arn);
        change(key.unwrap_or_else(|| panic!("no key {arn}")));
    }

    /// Somebody else's key; its ARN.
    pub fn foreign(&self, region: &str, state: &'static str, tags: &[(&str, &str)]) -> String {
        let id = unique();
        let arn = format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}");
        let tags = tags
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        self.state().keys.push(Kept {
            arn: arn.clone(),
            id,
            region: region.to_owned(),
            spec: "SYMMETRIC_DEFAULT".to_owned(),
            usage: "ENCRYPT_DECRYPT".to_owned(),
            multi_region: false,
            state,
            origin: "EXTERNAL".to_owned(),
            tags,
            material: Vec::new(),
            window: None,
        });
        arn
    }

    /// What an alias points at.
    pub fn alias(&self, region: &str, alias: &str) -> Option<String> {
        self.state()
            .aliases
            .get(&(region.to_owned(), alias.to_owned()))
            .cloned()
    }

    /// The aliases of a region.
    pub fn aliases(&self, region: &str) -> Vec<String> {
        let state = self.state();
        let of_region = state.aliases.keys().filter(|(of, _)| of == region);
        of_region.map(|(_, alias)| alias.clone()).collect()
    }

    /// Points an alias at a key, or takes it away, behind the operator's back.
    pub fn set_alias(&self, region: &str, alias: &str, arn: Option<&str>) {
        let place = (region.to_owned(), alias.to_owned());
        match arn {
            Some(arn) => self.state().aliases.insert(place, arn.to_owned()),
            None => self.state().aliases.remove(&place),
        };
    }

    /// A region answers nothing but 503, or does again.
    pub fn down(&self, region: &str, is_down: bool) {
        let mut state = self.state();
        if is_down {
            state.down.insert(region.to_owned());
        } else {
            state.down.remove(region);
        }
    }

    /// An error instead of the next answer to an operation.
    pub fn next(&self, operation: &str, code: &'static str) {
        self.state().scripts.push((operation.to_owned(), code));
    }

    /// An error instead of every answer to an operation, or none.
    pub fn always(&self, operation: &str, code: Option<&'static str>) {
        let mut state = self.state();
        match code {
            Some(code) => state.always.insert(operation.to_owned(), code),
            None => state.always.remove(operation),
        };
    }

    /// How often an operation was called.
    pub fn count(&self, operation: &str) -> usize {
        let state = self.state();
        state
            .calls
            .iter()
            .filter(|(called, _)| called == operation)
            .count()
    }

    /// Calls that no honest client makes.
    pub fn wrong(&self) -> Vec<String> {
        self.state().wrong.clone()
    }

    /// Calls that change something, so far.
    pub fn changes(&self) -> usize {
        self.state().changes
    }

    /// The operator of this process id dies at that change, counted from 1.
    pub fn cut(&self, change: usize, side: Side) {
        self.state().cut = Some((change, side));
    }

    /// Another operator is started: it knows nothing of when the one before fetched import parameters.
    pub fn another_operator(&self) {
        let mut state = self.state();
        state.last_parameters.clear();
        state.cut = None;
    }

    /// Whom a cut ends.
    pub fn victim(&self, pid: u32) {
        self.pid.store(pid, Ordering::SeqCst);
    }

    /// Whether the cut was made.
    pub fn has_struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }
}

const CHANGES: [&str; 12] = [
    "CreateKey",
    "GetParametersForImport",
    "ImportKeyMaterial",
    "ReplicateKey",
    "EnableKey",
    "DisableKey",
    "ScheduleKeyDeletion",
    "CancelKeyDeletion",
    "CreateAlias",
    "UpdateAlias",
    "DeleteAlias",
    "TagResource",
];

fn answer(
    request: &Request,
    seals: &Kms,
    state: &Mutex<State>,
    wrapping: &Wrapping,
    pid: &AtomicU32,
    struck: &AtomicBool,
) -> Reply {
    let operation = request
        .header("x-amz-target")
        .and_then(|target| target.strip_prefix("TrentService."))
        .unwrap_or_default()
        .to_owned();
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let Some((_, region)) = signer(request) else {
        return error(400, "MissingAuthenticationTokenException");
    };
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let named = body["KeyId"].as_str().unwrap_or_default();
    let ours = named.starts_with("alias/") && !seals.has_alias(named)
        || state.keys.iter().any(|key| key.arn == named || key.id == named);
    if matches!(operation.as_str(), "Encrypt" | "Decrypt")
        || operation == "DescribeKey" && !ours && seals.knows(named)
    {
        drop(state);
        return seals.reply(request);
    }
    state.calls.push((operation.clone(), region.clone()));
    if state.down.contains(&region) {
        return Reply::new(503, "text/plain", "down");
    }
    let changes = CHANGES.contains(&operation.as_str());
    let mut dies = None;
    if changes {
        state.changes += 1;
        dies = state
            .cut
            .filter(|(at, _)| *at <= state.changes)
            .map(|(at, side)| {
                // Only the first change at or after the cut is carried out, and only if it dies after that.
                if at == state.changes { side } else { Side::Before }
            });
    }
    let scripted = state.scripts.iter().position(|(of, _)| *of == operation);
    let scripted = scripted.map(|at| state.scripts.remove(at).1);
    let scripted = scripted.or_else(|| state.always.get(&operation).copied());
    let reply = if dies == Some(Side::Before) {
        Reply::Hang
    } else if let Some(code) = scripted {
        error(400, code)
    } else {
        match handle(&mut state, &operation, &body, &region, wrapping) {
            Ok(value) => json_answer(200, &value),
            Err(code) => error(400, code),
        }
    };
    drop(state);
    if dies.is_none() {
        return reply;
    }
    loop {
        let victim = i32::try_from(pid.load(Ordering::SeqCst))
            .ok()
            .and_then(Pid::from_raw);
        if let Some(victim) = victim {
            let _ = kill_process(victim, Signal::KILL);
            struck.store(true, Ordering::SeqCst);
            return Reply::Hang;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

type Outcome = Result<Value, &'static str>;

fn find<'s>(state: &'s mut State, name: &str, region: &str) -> Result<&'s mut Kept, &'static str> {
    let arn = state.aliases.get(&(region.to_owned(), name.to_owned())).cloned();
    let name = arn.unwrap_or_else(|| name.to_owned());
    let mut keys = state.keys.iter_mut();
    keys.find(|key| key.region == region && (key.arn == name || key.id == name))
        .ok_or("NotFoundException")
}

fn metadata(key: &Kept) -> Value {
    json!({
        "AWSAccountId": ACCOUNT, "Arn": key.arn, "KeyId": key.id, "KeyState": key.state, "Origin": key.origin,
        "KeySpec": key.spec, "KeyUsage": key.usage, "MultiRegion": key.multi_region, "Enabled": key.state == "Enabled",
        "KeyManager": "CUSTOMER", "CreationDate": 1_795_380_549.7,
    })
}

fn tags_of(body: &Value) -> BTreeMap<String, String> {
    let tags = body["Tags"].as_array().into_iter().flatten();
    tags.map(|tag| {
        let text = |name: &str| tag[name].as_str().unwrap_or_default().to_owned();
        (text("TagKey"), text("TagValue"))
    })
    .collect()
}

#[expect(clippy::too_many_lines, reason = "one arm for each operation")]
fn handle(state: &mut State, operation: &str, body: &Value, region: &str, wrapping: &Wrapping) -> Outcome {
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let name = text("KeyId");
    // Aliases are taken by DescribeKey and the cryptographic calls only.
    if operation != "DescribeKey" && name.starts_with("alias/") {
        return Err("NotFoundException");
    }
    match operation {
        "CreateKey" => {
            let multi_region = body["MultiRegion"].as_bool().unwrap_or_default();
            let id = format!(
                "{}{}{}",
                if multi_region { "mrk-" } else { "" },
                unique(),
                unique()
            );
            let key = Kept {
                arn: format!("arn:aws:kms:{region}:{ACCOUNT}:key/{id}"),
                id,
                region: region.to_owned(),
                spec: text("KeySpec"),
                usage: text("KeyUsage"),
                multi_region,
                state: "PendingImport",
                origin: text("Origin"),
                tags: tags_of(body),
                material: Vec::new(),
                window: None,
            };
            if key.origin != "EXTERNAL" || !key.tags.contains_key("autounseal.dev/create-token") {
                state.wrong.push(format!("CreateKey {body}"));
            }
            let told = metadata(&key);
            state.keys.push(key);
            Ok(json!({"KeyMetadata": told}))
        }
        "DescribeKey" => Ok(json!({"KeyMetadata": metadata(find(state, &name, region)?)})),
        "ListKeys" => {
            let keys = state.keys.iter().filter(|key| key.region == region);
            let keys: Vec<_> = keys
                .map(|key| json!({"KeyArn": key.arn, "KeyId": key.id}))
                .collect();
            Ok(json!({"Keys": keys, "Truncated": false}))
        }
        "ListResourceTags" => {
            let key = find(state, &name, region)?;
            let tags: Vec<_> = key
                .tags
                .iter()
                .map(|(k, v)| json!({"TagKey": k, "TagValue": v}))
                .collect();
            Ok(json!({"Tags": tags, "Truncated": false}))
        }
        "TagResource" => {
            find(state, &name, region)?.tags.extend(tags_of(body));
            Ok(json!({}))
        }
        "ListAliases" => {
            let arn = find(state, &name, region)?.arn.clone();
            let aliases = state
                .aliases
                .iter()
                .filter(|(place, of)| place.0 == region && **of == arn);
            let aliases: Vec<_> = aliases.map(|(place, _)| json!({"AliasName": place.1})).collect();
            Ok(json!({"Aliases": aliases, "Truncated": false}))
        }
        "GetParametersForImport" => {
            let last = state.last_parameters.insert(region.to_owned(), Instant::now());
            if last.is_some_and(|last| last.elapsed() < Duration::from_millis(3900)) {
                state
                    .wrong
                    .push(format!("two sets of import parameters within 4 s in {region}"));
            }
            let key = find(state, &name, region)?;
            if !matches!(key.state, "PendingImport" | "Enabled" | "Disabled") || key.origin != "EXTERNAL" {
                return Err("KMSInvalidStateException");
            }
            let symmetric = key.spec == "SYMMETRIC_DEFAULT";
            let algorithm = text("WrappingAlgorithm");
            let fits = if symmetric {
                algorithm == "RSAES_OAEP_SHA_256"
            } else {
                algorithm == "RSA_AES_KEY_WRAP_SHA_256"
            };
            if !fits || text("WrappingKeySpec") != "RSA_4096" {
                return Err("UnsupportedOperationException");
            }
            let arn = key.arn.clone();
            let token = HEXLOWER.encode(&random(16));
            state.tokens.insert(token.clone(), (arn.clone(), algorithm, true));
            Ok(json!({
                "KeyId": arn, "ImportToken": BASE64.encode(token.as_bytes()), "PublicKey": BASE64.encode(&wrapping.public),
                "ParametersValidTo": 1_895_380_549.7,
            }))
        }
        "ImportKeyMaterial" => import(state, body, region, wrapping),
        "ReplicateKey" => {
            let primary = find(state, &name, region)?.clone();
            let to = text("ReplicaRegion");
            if !primary.multi_region || primary.state != "Enabled" {
                return Err("KMSInvalidStateException");
            }
            if state
                .keys
                .iter()
                .any(|key| key.id == primary.id && key.region == to)
            {
                return Err("AlreadyExistsException");
            }
            let replica = Kept {
                arn: primary.arn.replace(&format!(":{region}:"), &format!(":{to}:")),
                region: to,
                state: "PendingImport",
                tags: tags_of(body),
                ..primary
            };
            let told = metadata(&replica);
            state.keys.push(replica);
            Ok(json!({"ReplicaKeyMetadata": told}))
        }
        "EnableKey" | "DisableKey" => {
            let key = find(state, &name, region)?;
            if !matches!(key.state, "Enabled" | "Disabled") {
                return Err("KMSInvalidStateException");
            }
            key.state = if operation == "EnableKey" {
                "Enabled"
            } else {
                "Disabled"
            };
            Ok(json!({}))
        }
        "ScheduleKeyDeletion" => {
            let key = find(state, &name, region)?;
            if key.state == "PendingDeletion" {
                return Err("KMSInvalidStateException");
            }
            key.state = "PendingDeletion";
            key.window = body["PendingWindowInDays"].as_i64();
            Ok(json!({"KeyId": key.arn}))
        }
        "CancelKeyDeletion" => {
            let key = find(state, &name, region)?;
            if key.state != "PendingDeletion" {
                return Err("KMSInvalidStateException");
            }
            key.state = "Disabled";
            Ok(json!({"KeyId": key.arn}))
        }
        "CreateAlias" | "UpdateAlias" => {
            let target = find(state, &text("TargetKeyId"), region)?;
            if target.state == "PendingDeletion" {
                return Err("KMSInvalidStateException");
            }
            let (arn, enabled) = (target.arn.clone(), target.state == "Enabled");
            let place = (region.to_owned(), text("AliasName"));
            if !enabled {
                state
                    .wrong
                    .push(format!("{operation} to a key that is not Enabled: {body}"));
            }
            match (operation, state.aliases.contains_key(&place)) {
                ("CreateAlias", true) => return Err("AlreadyExistsException"),
                ("UpdateAlias", false) => return Err("NotFoundException"),
                _ => {}
            }
            state.aliases.insert(place, arn);
            Ok(json!({}))
        }
        "DeleteAlias" => {
            let place = (region.to_owned(), text("AliasName"));
            state.aliases.remove(&place).ok_or("NotFoundException")?;
            Ok(json!({}))
        }
        _ => {
            state.wrong.push(format!("unknown operation {operation}"));
            Err("UnknownOperationException")
        }
    }
}

fn import(state: &mut State, body: &Value, region: &str, wrapping: &Wrapping) -> Outcome {
    let blob = |name: &str| {
        BASE64
            .decode(body[name].as_str().unwrap_or_default().as_bytes())
            .unwrap_or_default()
    };
    if body["ExpirationModel"] != "KEY_MATERIAL_DOES_NOT_EXPIRE" || body.get("ValidTo").is_some() {
        state
            .wrong
            .push(format!("an import that expires: {}", body["ExpirationModel"]));
        return Err("ValidationException");
    }
    let token = String::from_utf8(blob("ImportToken")).unwrap_or_default();
    let Some((arn, algorithm, good)) = state.tokens.get(&token).cloned() else {
        return Err("InvalidImportTokenException");
    };
    if !good {
        return Err("ExpiredImportTokenException");
    }
    let key = find(state, body["KeyId"].as_str().unwrap_or_default(), region)?;
    if key.arn != arn {
        return Err("InvalidImportTokenException");
    }
    if !matches!(key.state, "PendingImport" | "Enabled" | "Disabled") {
        return Err("KMSInvalidStateException");
    }
    let wrapped = blob("EncryptedKeyMaterial");
    let material = unwrap(wrapping, &algorithm, &wrapped).ok_or("InvalidCiphertextException")?;
    let fits = match key.spec.as_str() {
        "SYMMETRIC_DEFAULT" => material.len() == 32,
        "RSA_2048" => KeyPair::from_pkcs8(&material).is_ok_and(|pair| pair.public_modulus_len() == 256),
        _ => material.first() == Some(&0x30),
    };
    if !fits {
        return Err("InvalidCiphertextException");
    }
    if !key.material.is_empty() && key.material != material {
        return Err("IncorrectKeyMaterialException");
    }
    key.material = material;
    if key.state == "PendingImport" {
        key.state = "Enabled";
    }
    Ok(json!({"KeyId": key.arn}))
}

fn unwrap(wrapping: &Wrapping, algorithm: &str, wrapped: &[u8]) -> Option<Vec<u8>> {
    let oaep = |bytes: &[u8]| {
        let mut out = vec![0; wrapping.private.min_output_size()];
        let opened = wrapping
            .private
            .decrypt(&OAEP_SHA256_MGF1SHA256, bytes, &mut out, None);
        opened.ok().map(|opened| opened.to_vec())
    };
    if algorithm == "RSAES_OAEP_SHA_256" {
        return oaep(wrapped);
    }
    let key = oaep(wrapped.get(..512)?)?;
    let kek = AesKek::new(&AES_256, &key).ok()?;
    let mut out = vec![0; wrapped.len()];
    let opened = kek.unwrap_with_padding(&wrapped[512..], &mut out).ok()?;
    Some(opened.to_vec())
}
