//! OKE workload identity: a ServiceAccount's token, exchanged for a session token by the cluster's own control plane.
//!
//! Source: `common/auth/federation_client_oke_workload_identity.go` of the Go SDK v65 and
//! `oke_workload_identity_resource_principal_signer.py` of the Python SDK.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    error::{self, Failure},
    http::{Client, Lookup, Request},
    instance_principal::{fresh, refusal},
    operator_identity::Environment,
    session::{self, Session},
};
use crate::{
    api::Reason,
    provider::{Audience, Cluster, Timeouts},
    seal::Fault,
};

/// The port of the control plane that issues session tokens.
const PORT: u16 = 12250;

const WHAT: &str = "OKE's token endpoint";

/// How a workload's identity is got.
pub(super) struct WorkloadIdentity {
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) environment: Environment,
    pub(super) timeouts: Timeouts,
    pub(super) lookup: Lookup,
}

#[derive(Deserialize)]
struct Issued {
    token: String,
}

impl WorkloadIdentity {
    /// A new session. The ServiceAccount's token has the apiserver's own audience, as the one that is mounted into pods,
    /// for OKE takes no other; it lives for ten minutes and is sent to the cluster's control plane only, whose address
    /// and CA are the operator's (security rules S9, S18).
    pub(super) async fn load(&self, now: SystemTime) -> Result<Session, Fault> {
        let (host, ca) = self.environment.control_plane()?;
        let client = Client::new(false, &self.lookup, self.timeouts.connect, Some(ca));
        let token = self
            .cluster
            .token(&self.namespace, &self.service_account, Audience::Cluster)
            .await?;
        let own = session::fresh_key().await?;
        let told = |failure: &Failure| {
            error::federation(
                failure,
                WHAT,
                "workload identity needs an enhanced cluster of OKE, and a ServiceAccount of this cluster",
            )
        };
        let public = session::public_key(&own).ok_or_else(|| told(&Failure::Garbage))?;
        let request = Request {
            method: Method::POST,
            base: &format!("https://{host}:{PORT}"),
            target: "/resourcePrincipalSessionTokens",
            headers: vec![
                ("authorization", format!("Bearer {}", token.expose())),
                ("content-type", "application/json".to_owned()),
            ],
            body: Some(Bytes::from(serde_json::json!({"podKey": public}).to_string())),
            timeout: self.timeouts.attempt,
        };
        let answer = client.send(request).await.map_err(|failure| told(&failure))?;
        if answer.status != 200 {
            let refused = refusal(&answer, now);
            if answer.status == 401 {
                return Err(Fault::denied(
                    Reason::FederationRejected,
                    format!(
                        "{WHAT} does not take the token of ServiceAccount {}/{}; check that the operator runs in the very \
                         cluster whose KUBERNETES_SERVICE_HOST it has",
                        self.namespace, self.service_account
                    ),
                ));
            }
            return Err(told(&refused));
        }
        let session = session_token(&answer.body).and_then(|token| Session::of_token(&token, own));
        fresh(session.ok_or_else(|| told(&Failure::Garbage))?, now, WHAT)
    }
}

/// The token in an answer: a quoted string of base64 over JSON, whose token begins with `ST$`.
pub(super) fn session_token(body: &[u8]) -> Option<String> {
    let quoted = body.trim_ascii();
    let text: String = match serde_json::from_slice(quoted) {
        Ok(text) => text,
        Err(_) => String::from_utf8(quoted.to_vec()).ok()?,
    };
    let json = Zeroizing::new(data_encoding::BASE64.decode(text.trim().as_bytes()).ok()?);
    let issued: Issued = serde_json::from_slice(&json).ok()?;
    let token = issued.token;
    Some(token.strip_prefix("ST$").unwrap_or(&token).to_owned())
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;

    use super::*;

    #[test]
    fn the_token_is_taken_out_of_its_wrappings() {
        let inner = BASE64.encode(br#"{"token": "ST$a.b.c"}"#);
        for body in [format!("\"{inner}\""), format!(" \"{inner}\"\n"), inner.clone()] {
            assert_eq!(session_token(body.as_bytes()).as_deref(), Some("a.b.c"), "{body}");
        }
        for body in ["", "\"\"", "\"?\"", "{\"token\": \"x\"}", &BASE64.encode(b"{}")] {
            assert_eq!(session_token(body.as_bytes()), None, "{body}");
        }
    }
}
