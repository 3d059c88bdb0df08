//! ManagedKeys, as `status` shows them.

use std::fmt::Write as _;

use http::StatusCode;
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use super::table;
use crate::{
    api::{ManagedKey, ManagedKeyStatus, Reason},
    cli::{Failure, cluster, output},
    kube_ext::{bounded, cluster::read_fault},
};

/// The ManagedKey of that name.
pub(super) async fn one(client: &Client, namespace: &str, name: &str) -> Result<Option<ManagedKey>, Failure> {
    let api: Api<ManagedKey> = Api::namespaced(client.clone(), namespace);
    match bounded(api.get_opt(name)).await {
        Ok(found) => Ok(found),
        Err(error) => unless_hidden(&error, namespace).map(|()| None),
    }
}

/// All of a scope.
pub(super) async fn list(api: &Api<ManagedKey>) -> Result<Vec<ManagedKey>, Failure> {
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(super::PAGE);
    loop {
        let page = match bounded(api.list(&params)).await {
            Ok(page) => page,
            Err(error) => return unless_hidden(&error, "").map(|()| found),
        };
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    found.sort_by_key(|key| (key.namespace(), key.name_any()));
    Ok(found)
}

/// A cluster without the kind has none of it, and who may not see them is told so.
fn unless_hidden(error: &kube::Error, namespace: &str) -> Result<(), Failure> {
    let code = match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    };
    if code == StatusCode::NOT_FOUND.as_u16() {
        return Ok(());
    }
    if code == StatusCode::FORBIDDEN.as_u16() {
        output::note("you may not list managedkeys here, so none is shown");
        return Ok(());
    }
    let fault = read_fault(error, "list managedkeys", namespace, Reason::SourceMissing);
    Err(Failure::No(cluster::yours(fault).message))
}

/// One ManagedKey, as it is shown.
pub(super) struct KeyRow {
    namespace: String,
    name: String,
    type_: &'static str,
    ready: String,
    reason: String,
    message: String,
    /// Whether the status speaks of the spec as it is now.
    up_to_date: bool,
    status: ManagedKeyStatus,
}

impl KeyRow {
    pub(super) fn of(key: &ManagedKey) -> Self {
        let status = key.status.clone().unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        Self {
            namespace: key.namespace().unwrap_or_default(),
            name: key.name_any(),
            type_: key.spec.type_.as_str(),
            ready: ready.map_or("Unknown", |ready| &ready.status).to_owned(),
            reason: ready.map_or("Pending", |ready| &ready.reason).to_owned(),
            message: ready.map_or("", |ready| &ready.message).to_owned(),
            up_to_date: status.observed_generation == key.metadata.generation,
            status,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready == "True" && self.up_to_date
    }
}

pub(super) fn as_json(rows: &[KeyRow]) -> Value {
    let keys: Vec<_> = rows
        .iter()
        .map(|row| {
            let material = row.status.material.clone().unwrap_or_default();
            json!({
                "namespace": row.namespace, "name": row.name, "type": row.type_, "ready": row.ready, "reason": row.reason,
                "message": row.message, "upToDate": row.up_to_date, "version": material.version,
                "wrappedUnder": material.wrapped_under, "distributions": row.status.distributions,
            })
        })
        .collect();
    json!(keys)
}

pub(super) fn as_text(rows: &[KeyRow]) -> String {
    let mut out = String::new();
    for row in rows {
        let said = match (row.is_ready(), row.up_to_date) {
            (true, _) => "Ready".to_owned(),
            (false, true) => format!("not Ready, {}", row.reason),
            (false, false) => format!("changed since the operator looked (then {})", row.reason),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{}/{} (ManagedKey, {}): {said}",
            row.namespace, row.name, row.type_
        );
        if !row.is_ready() && !row.message.is_empty() {
            let _ = writeln!(out, "  {}", row.message);
        }
        let lines = row.status.distributions.iter().map(|told| {
            let states: Vec<_> = told
                .versions
                .iter()
                .map(|version| format!("v{} {}", version.version, version.state.as_deref().unwrap_or("-")))
                .collect();
            vec![
                told.name.clone(),
                told.current_version.to_string(),
                told.alias.clone().unwrap_or_else(|| "-".to_owned()),
                if states.is_empty() {
                    "-".to_owned()
                } else {
                    states.join(", ")
                },
            ]
        });
        out.push_str(&table(
            &["DISTRIBUTION", "VERSION", "ALIAS", "KEYS"],
            lines.collect(),
        ));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_shown_with_its_alias_and_the_states_of_its_keys() {
        let key: ManagedKey = serde_json::from_value(json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "ManagedKey",
            "metadata": {"name": "pay", "namespace": "n", "generation": 2},
            "spec": {"type": "aes256-gcm96", "usage": "EncryptDecrypt", "material": {"generate": {}}, "sealConfigRef": {"name": "p"}},
            "status": {
                "observedGeneration": 2,
                "conditions": [{"type": "Ready", "status": "False", "reason": "KMSUnavailable", "message": "it is silent",
                    "lastTransitionTime": "2026-11-24T00:00:00Z"}],
                "material": {"name": "material", "version": 2, "wrappedUnder": ["aws"]},
                "distributions": [{"name": "eu", "alias": "alias/hashicorp/pay-1", "currentVersion": 2, "versions": [
                    {"version": 1, "keyID": "arn", "state": "Disabled"}, {"version": 2, "keyID": "arn", "state": "Enabled"}]}],
            },
        }))
        .unwrap();
        let rows = [KeyRow::of(&key)];
        let text = as_text(&rows);
        for fragment in [
            "not Ready, KMSUnavailable",
            "it is silent",
            "alias/hashicorp/pay-1",
            "v1 Disabled, v2 Enabled",
        ] {
            assert!(text.contains(fragment), "{fragment}: {text}");
        }
        let shown = as_json(&rows);
        assert_eq!(
            (&shown[0]["version"], &shown[0]["wrappedUnder"]),
            (&json!(2), &json!(["aws"]))
        );
        assert!(!rows[0].is_ready());
    }
}
