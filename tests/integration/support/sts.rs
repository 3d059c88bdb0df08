//! An STS of our own: records what it was asked, hands out credentials that name their role, refuses on demand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;

use super::http::{Reply, Request, Server};

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// `AssumeRole`, `AssumeRoleWithWebIdentity`, …
    pub action: String,
    /// All form fields, decoded.
    pub form: Vec<(String, String)>,
    /// Whether it was signed.
    pub signed: bool,
    /// `User-Agent` and the rest.
    pub headers: Vec<(String, String)>,
    /// What was handed out.
    pub issued: Option<Issued>,
}

impl Call {
    /// A form field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.form
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The claims of the web identity token, read without verifying: the apiserver's TokenReview does that.
    pub fn claims(&self) -> Value {
        self.field("WebIdentityToken")
            .and_then(|token| token.split('.').nth(1).map(str::to_owned))
            .and_then(|payload| BASE64URL_NOPAD.decode(payload.as_bytes()).ok())
            .and_then(|payload| serde_json::from_slice(&payload).ok())
            .unwrap_or_default()
    }
}

/// Credentials that were handed out.
#[derive(Clone, Debug)]
pub struct Issued {
    /// `ASIA…`.
    pub access_key_id: String,
    /// Secret.
    pub secret_access_key: String,
    /// Token.
    pub session_token: String,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    refuse: Option<(u16, &'static str)>,
    echo: bool,
    lifetime: u64,
}

/// The server.
pub struct Sts {
    server: Server,
    state: Arc<Mutex<State>>,
}

impl Sts {
    /// Starts it on a free loopback port.
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            lifetime: 3600,
            ..State::default()
        }));
        let shared = state.clone();
        let server = Server::start(move |request| {
            answer(
                &mut shared.lock().unwrap_or_else(PoisonError::into_inner),
                &request,
            )
        });
        Self { server, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Answers every call with this error; `None` heals.
    pub fn refuse(&self, with: Option<(u16, &'static str)>) {
        self.state().refuse = with;
    }

    /// Seconds that credentials are good for from now on.
    pub fn lifetime(&self, seconds: u64) {
        self.state().lifetime = seconds;
    }

    /// Whether errors repeat the whole request.
    pub fn echo(&self, on: bool) {
        self.state().echo = on;
    }
}

fn answer(state: &mut State, request: &Request) -> Reply {
    let form = form(&request.body);
    let field = |name: &str| {
        form.iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.clone())
            .unwrap_or_default()
    };
    let action = field("Action");
    let number = state.calls.len() + 1;
    let issued = state.refuse.is_none().then(|| Issued {
        access_key_id: format!("ASIASTUB{number:012}"),
        secret_access_key: format!("stub+secret/{number:028}"),
        session_token: format!("stubsessiontoken//{number:040}=="),
    });
    let call = Call {
        action: action.clone(),
        form: form.clone(),
        signed: request.header("authorization").is_some(),
        headers: request.headers.clone(),
        issued: issued.clone(),
    };
    state.calls.push(call);
    let Some(issued) = issued else {
        let (status, code) = state.refuse.unwrap_or((403, "AccessDenied"));
        let said = if state.echo {
            format!(
                "{} {:?} {}",
                request.line,
                request.headers,
                String::from_utf8_lossy(&request.body)
            )
        } else {
            "scripted".into()
        };
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>{code}</Code><Message>{}</Message></Error><RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>",
            said.replace('&', "&amp;").replace('<', "&lt;")
        );
        return Reply::new(status, "text/xml", body);
    };
    let expires = jiff::Timestamp::now()
        .checked_add(jiff::SignedDuration::from_secs(
            i64::try_from(state.lifetime).unwrap_or(3600),
        ))
        .unwrap()
        .strftime("%Y-%m-%dT%H:%M:%SZ");
    let role = field("RoleArn")
        .replacen(":iam:", ":sts:", 1)
        .replacen(":role/", ":assumed-role/", 1);
    let body = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
         <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{expires}</Expiration></Credentials><AssumedRoleUser><Arn>{role}/{}</Arn>\
         <AssumedRoleId>AROASTUB:x</AssumedRoleId></AssumedRoleUser></{action}Result><ResponseMetadata>\
         <RequestId>00000000-0000-0000-0000-000000000000</RequestId></ResponseMetadata></{action}Response>",
        issued.access_key_id,
        issued.secret_access_key,
        issued.session_token,
        field("RoleSessionName"),
    );
    Reply::new(200, "text/xml", body)
}

fn form(body: &[u8]) -> Vec<(String, String)> {
    String::from_utf8_lossy(body)
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (percent_decoded(name), percent_decoded(value)))
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
