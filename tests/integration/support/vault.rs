//! A server that answers as Vault does, over TLS, and remembers what it was asked: for crashes at every request, which the
//! real one is too slow for. What it says of `sys/init`, `sys/unseal` and tokens is what the real one said in
//! `initialize.rs`, and of `sys/rekey` what it said in `rotate.rs`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{
    http::Request,
    pki::Pki,
    stage::random,
    tls::{Says, TlsServer},
};

/// What happens before or after a request is carried out.
pub type Hook = Arc<dyn Fn(&Asked, bool) + Send + Sync>;

/// A request that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `init`, `unseal`, `revoke`, `look-up`, or of a rekey `begin`, `feed`, `verify`, `verify-anew`, `cancel`.
    pub what: &'static str,
    /// Which one of these it is, from 1.
    pub number: usize,
}

/// What it is.
#[derive(Debug, Default)]
pub struct State {
    pub initialized: bool,
    pub sealed: bool,
    /// Everything that it ever answered and took, by set: shares, then the token.
    pub answers: Vec<(Vec<String>, String)>,
    threshold: usize,
    given: Vec<String>,
    token_lives: bool,
    asked: Vec<Asked>,
    /// New shares that it answered, whether it took them or not.
    offered: Vec<Vec<String>>,
    rekey: Option<Rekey>,
    /// Shares that it was given and did not make.
    pub foreign: usize,
    /// `sys/init` is refused with this status.
    pub refuses: Option<u16>,
    /// At this request it turns out that another server of its cluster is active now, which knows of no rekey.
    pub forgets: Option<Asked>,
    /// So many times it says that it revokes its token, and does not.
    pub spares_token: usize,
    /// How its cluster calls itself, if not as usual.
    pub cluster: Option<&'static str>,
}

/// A rekey that is in progress.
#[derive(Debug, Default)]
struct Rekey {
    nonce: String,
    shares: u64,
    threshold: usize,
    fed: Vec<String>,
    verification: String,
    verified: Vec<String>,
}

/// The server.
pub struct Vault {
    server: TlsServer,
    state: Arc<Mutex<State>>,
}

const CLUSTER: &str = "0b0a1c1e-6d3b-4f6f-9d3c-0123456789ab";

impl Vault {
    pub fn start(pki: &Pki, host: &str, hook: Option<Hook>) -> Self {
        let state: Arc<Mutex<State>> = Arc::new(Mutex::new(State {
            sealed: true,
            ..State::default()
        }));
        let shared = state.clone();
        let server = TlsServer::start(pki, host, move |request| answer(&shared, hook.as_ref(), request));
        Self { server, state }
    }

    pub fn port(&self) -> u16 {
        self.server.address().port()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// How often it was asked for this.
    pub fn count(&self, what: &str) -> usize {
        self.state()
            .asked
            .iter()
            .filter(|asked| asked.what == what)
            .count()
    }

    /// As at a start: sealed, if there is anything to seal.
    pub fn restart(&self) {
        let mut state = self.state();
        state.sealed = true;
        state.given.clear();
        state.rekey = None;
    }

    /// Somebody ends the rekey that is in progress; whether there was one.
    pub fn cancel_rekey(&self) -> bool {
        self.state().rekey.take().is_some()
    }

    /// Its volume is lost.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.initialized = false;
        state.sealed = true;
        state.given.clear();
    }

    /// Joins the cluster of the server that answered this.
    pub fn join(&self, answers: Vec<(Vec<String>, String)>) {
        let mut state = self.state();
        state.initialized = true;
        state.threshold = 2;
        state.answers = answers;
    }

    /// Whether the token of its last initialisation works.
    pub fn token_lives(&self) -> bool {
        self.state().token_lives
    }

    /// Every share and token that it ever answered.
    pub fn secrets(&self) -> Vec<String> {
        let state = self.state();
        let all = state.answers.iter();
        all.flat_map(|(shares, token)| shares.iter().chain([token]).cloned())
            .chain(state.offered.iter().flatten().cloned())
            .collect()
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(state: &Mutex<State>, hook: Option<&Hook>, request: &Request) -> Says {
    let mut words = request.line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let what = match (method, path) {
        ("PUT", "/v1/sys/init") => "init",
        ("PUT", "/v1/sys/unseal") => "unseal",
        ("POST", "/v1/auth/token/revoke-self") => "revoke",
        ("GET", "/v1/auth/token/lookup-self") => "look-up",
        ("PUT", "/v1/sys/rekey/init") => "begin",
        ("PUT", "/v1/sys/rekey/update") => "feed",
        ("PUT", "/v1/sys/rekey/verify") => "verify",
        ("DELETE", "/v1/sys/rekey/verify") => "verify-anew",
        ("DELETE", "/v1/sys/rekey/init") => "cancel",
        ("GET", "/v1/sys/rekey/init") => return says(200, &going(&locked(state))),
        ("GET", "/v1/sys/seal-status") => return says(200, &status(&locked(state))),
        _ => return says(404, &json!({"errors": []})),
    };
    let asked = {
        let mut state = locked(state);
        let number = state.asked.iter().filter(|asked| asked.what == what).count() + 1;
        let asked = Asked { what, number };
        state.asked.push(asked.clone());
        if state.forgets.as_ref() == Some(&asked) {
            state.rekey = None;
        }
        asked
    };
    // Not with the lock held: a hook looks at the world, and may take its time.
    if let Some(hook) = hook {
        hook(&asked, true);
    }
    let said = carry_out(&mut locked(state), what, request);
    if let Some(hook) = hook {
        hook(&asked, false);
    }
    said
}

fn carry_out(state: &mut State, what: &str, request: &Request) -> Says {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let token = request.header("x-vault-token").unwrap_or_default().to_owned();
    let ours = state.token_lives && state.answers.last().is_some_and(|(_, last)| *last == token);
    match what {
        "init" => {
            if let Some(status) = state.refuses {
                return says(status, &json!({"errors": ["refused"]}));
            }
            if state.initialized {
                return says(400, &json!({"errors": ["Vault is already initialized"]}));
            }
            let count = body["secret_shares"].as_u64().unwrap();
            state.threshold = usize::try_from(body["secret_threshold"].as_u64().unwrap()).unwrap();
            let shares: Vec<String> = (0..count).map(|_| BASE64.encode(&random(33))).collect();
            let token = format!("hvs.{}", data_encoding::HEXLOWER.encode(&random(12)));
            state.initialized = true;
            state.token_lives = true;
            state.offered.clear();
            state.answers.push((shares.clone(), token.clone()));
            says(
                200,
                &json!({"keys": [], "keys_base64": shares, "root_token": token}),
            )
        }
        "unseal" => {
            if body["reset"] == true {
                state.given.clear();
                return says(200, &status(state));
            }
            let key = body["key"].as_str().unwrap_or_default().to_owned();
            // Those that it answered since it was last initialised.
            let token = state.answers.last().map(|(_, token)| token.clone());
            let sets = state.answers.iter().filter(|(_, of)| Some(of) == token.as_ref());
            let mut sets = sets.map(|(shares, _)| shares).chain(&state.offered);
            let known = sets.any(|shares| shares.contains(&key));
            if !state.initialized || !known {
                state.foreign += 1;
                state.given.clear();
                return says(400, &json!({"errors": ["refused"]}));
            }
            if !state.given.contains(&key) {
                state.given.push(key);
            }
            if state.given.len() >= state.threshold {
                let given = std::mem::take(&mut state.given);
                if !is_of_last(state, &given) {
                    return says(400, &json!({"errors": ["refused"]}));
                }
                state.sealed = false;
            }
            says(200, &status(state))
        }
        _ if state.sealed => says(503, &json!({"errors": ["Vault is sealed"]})),
        "begin" | "feed" | "verify" | "verify-anew" | "cancel" => rekey(state, what, &body),
        _ if !ours => says(403, &json!({"errors": ["permission denied"]})),
        "revoke" => {
            state.token_lives = state.spares_token > 0;
            state.spares_token = state.spares_token.saturating_sub(1);
            Says::Answer(204, "", String::new())
        }
        _ => says(200, &json!({"data": {"policies": ["root"]}})),
    }
}

fn is_of_last(state: &State, given: &[String]) -> bool {
    let last = state.answers.last();
    last.is_some_and(|(shares, _)| given.iter().all(|share| shares.contains(share)))
}

fn uuid() -> String {
    let hex = data_encoding::HEXLOWER.encode(&random(16));
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

fn rekey(state: &mut State, what: &str, body: &Value) -> Says {
    let refused = || says(400, &json!({"errors": ["refused"]}));
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    if what == "begin" {
        if state.rekey.is_some() {
            return refused();
        }
        assert_eq!(body["require_verification"], true);
        state.rekey = Some(Rekey {
            nonce: uuid(),
            shares: body["secret_shares"].as_u64().unwrap(),
            threshold: usize::try_from(body["secret_threshold"].as_u64().unwrap()).unwrap(),
            ..Rekey::default()
        });
        return says(200, &going(state));
    }
    let Some(mut rekey) = state.rekey.take() else {
        return refused();
    };
    let said = match what {
        "cancel" => return Says::Answer(204, "", String::new()),
        "verify-anew" => {
            rekey.verification = uuid();
            rekey.verified.clear();
            says(200, &json!({"started": true, "nonce": rekey.verification}))
        }
        "feed" if rekey.verification.is_empty() && text("nonce") == rekey.nonce => {
            let key = text("key");
            if rekey.fed.contains(&key) {
                refused()
            } else {
                rekey.fed.push(key);
                if rekey.fed.len() < state.threshold {
                    state.rekey = Some(rekey);
                    return says(200, &going(state));
                }
                let fed = std::mem::take(&mut rekey.fed);
                if is_of_last(state, &fed) {
                    let shares: Vec<String> = (0..rekey.shares).map(|_| BASE64.encode(&random(33))).collect();
                    rekey.verification = uuid();
                    state.offered.push(shares.clone());
                    says(
                        200,
                        &json!({
                            "complete": true, "nonce": rekey.nonce, "keys": [], "keys_base64": shares,
                            "verification_required": true, "verification_nonce": rekey.verification,
                        }),
                    )
                } else {
                    says(500, &json!({"errors": ["refused"]}))
                }
            }
        }
        "verify" if !rekey.verification.is_empty() && text("nonce") == rekey.verification => {
            let offered = state.offered.last().unwrap().clone();
            let key = text("key");
            if rekey.verified.contains(&key) {
                refused()
            } else {
                rekey.verified.push(key);
                if rekey.verified.len() < rekey.threshold {
                    says(200, &json!({"started": true, "nonce": rekey.verification}))
                } else if rekey.verified.iter().all(|share| offered.contains(share)) {
                    let token = state.answers.last().unwrap().1.clone();
                    state.answers.push((offered, token));
                    state.threshold = rekey.threshold;
                    return says(200, &json!({"complete": true, "nonce": rekey.verification}));
                } else {
                    rekey.verification = uuid();
                    rekey.verified.clear();
                    refused()
                }
            }
        }
        _ => refused(),
    };
    state.rekey = Some(rekey);
    said
}

fn going(state: &State) -> Value {
    let required = state.threshold;
    match &state.rekey {
        None => json!({"nonce": "", "started": false, "required": required, "verification_nonce": ""}),
        Some(rekey) => json!({
            "nonce": rekey.nonce, "started": true, "t": rekey.threshold, "n": rekey.shares, "required": required,
            "progress": rekey.fed.len(), "verification_required": true, "verification_nonce": rekey.verification,
        }),
    }
}

fn status(state: &State) -> Value {
    let mut status = json!({
        "type": "shamir", "initialized": state.initialized, "sealed": state.sealed, "t": state.threshold, "n": state.threshold,
        "progress": state.given.len(), "nonce": if state.given.is_empty() { "" } else { "n" }, "recovery_seal": false,
    });
    if state.initialized && !state.sealed {
        status["cluster_id"] = json!(state.cluster.unwrap_or(CLUSTER));
    }
    status
}

fn says(code: u16, body: &Value) -> Says {
    Says::Answer(code, "", body.to_string())
}
