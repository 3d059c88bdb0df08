//! `autounseal check`: what the operator would say and do, without a cluster and without a cloud.

mod managed;

use std::{fmt::Write as _, path::PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    Done, Failure, Output,
    manifest::{self, API_VERSION, Object},
    output,
    schema::{self, Problem},
    sending,
};
use crate::{
    api::{self, Encoding, KIND, KeyVersion, MANAGED_KIND, SealConfig, SecretType, UnsealProduct},
    seal::{
        aws::{AwsSeal, Credentials},
        entry::EntryContent,
        model::{self, Cloud, Key, Model, Origin, Source, Target},
        oci::{self, OciSeal},
        stanza::{Stanza, Variable},
        store::{
            Provenance, secret_name,
            standing::{needs_store, wrapping},
        },
        unseal::{Unseal, initialize::Split},
    },
};

/// Check manifests offline and print what the operator would do
///
/// Reads every SealConfig and ManagedKey of the files, holds it against the schema (unknown fields are errors) and against the rules
/// that the operator itself applies, and prints which seals open which keys and which Secrets receive them. Nothing
/// is contacted: whether the KMS keys, Secrets, ServiceAccounts and pods exist is not looked at. Objects of other kinds
/// are skipped with a note.
///
/// Examples:
///
///   autounseal check -f seal.yaml
///   kustomize build . | autounseal check -f -
///   autounseal check -o json -f a.yaml -f b.yaml | jq '.objects[].problems'
///
/// Exit codes: 0 every object is well, 1 one is not or there is none, 2 a file cannot be read.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct CheckArgs {
    /// A file with manifests, YAML or JSON, at most 1 MiB; - reads standard input. May be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// The namespace of manifests that name none
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to print the report
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: &CheckArgs) -> Done {
    let mut objects = Vec::new();
    for file in &args.files {
        objects.extend(manifest::read(file)?);
    }
    let (configs, others): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .partition(|object| [KIND, MANAGED_KIND].contains(&object.kind()));
    for other in &others {
        let kind = match other.kind() {
            "" => "an object without a kind",
            kind => kind,
        };
        output::note(&format!(
            "{}: {kind} {} is neither a SealConfig nor a ManagedKey, skipped",
            other.place,
            other.name().unwrap_or_default()
        ));
    }
    if configs.is_empty() {
        return Err(Failure::No(
            "there is no SealConfig and no ManagedKey in what was given".to_owned(),
        ));
    }
    let mut results = Vec::new();
    for mut object in configs {
        object.put_in(args.namespace.as_deref())?;
        let checked = if object.kind() == MANAGED_KIND {
            managed::check(&object)
        } else {
            check(&object).map(Well::of)
        };
        results.push((object, checked));
    }
    match args.output {
        Output::Json => output::json(&as_json(&results)),
        Output::Text => output::report(&as_text(&results)),
    }
    if results.iter().all(|(_, checked)| checked.is_ok()) {
        Ok(())
    } else {
        Err(Failure::Told)
    }
}

/// What an object that is well will have the operator do.
struct Well {
    text: String,
    json: Value,
}

impl Well {
    #[expect(clippy::needless_pass_by_value, reason = "the last word on the model")]
    fn of(model: Model) -> Self {
        Self {
            text: plan_text(&model),
            json: plan_json(&model),
        }
    }
}

type Checked = Result<Well, Vec<Problem>>;

fn told(path: &str, message: String) -> Vec<Problem> {
    let path = path.to_owned();
    vec![Problem { path, message }]
}

/// Reads an object that keeps the schema of its kind.
fn read<K: DeserializeOwned>(object: &Object, definition: &Value) -> Result<K, Vec<Problem>> {
    if object.value["apiVersion"] != API_VERSION {
        return Err(told("apiVersion", format!("must be {API_VERSION}")));
    }
    let mut value = object.value.clone();
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    let problems = schema::check(&schema::of_kind(definition), &value);
    if !problems.is_empty() {
        return Err(problems);
    }
    if object.namespace().is_none() {
        return Err(told(
            "metadata",
            "namespace is missing; write it, or name it with --namespace".to_owned(),
        ));
    }
    serde_json::from_value(value).map_err(|error| told("", error.to_string()))
}

/// Schema first; the rules only where the schema is kept, for they read what it promises.
pub(super) fn check(object: &Object) -> Result<Model, Vec<Problem>> {
    let config: SealConfig = read(object, &api::crds()[0])?;
    let model = model::parse(&config).map_err(|fault| told("", fault.to_string()))?;
    let problems: Vec<_> = model.targets.iter().filter_map(missing_entries).collect();
    if problems.is_empty() {
        Ok(model)
    } else {
        Err(problems)
    }
}

/// What the apiserver asks of typed Secrets.
fn missing_entries(target: &Target) -> Option<Problem> {
    let has = |name: &str| target.entries.iter().any(|entry| entry.name == name);
    let message = match target.type_ {
        SecretType::Opaque => None,
        SecretType::Tls => (!has("tls.crt") || !has("tls.key"))
            .then_some("kubernetes.io/tls needs the entries tls.crt and tls.key"),
        SecretType::BasicAuth => (!has("username") && !has("password"))
            .then_some("kubernetes.io/basic-auth needs an entry username or password"),
    };
    message.map(|message| Problem {
        path: format!("target {:?}", target.name),
        message: format!("a Secret of type {message}"),
    })
}

fn title(object: &Object) -> String {
    match (object.namespace(), object.name()) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_owned(),
        _ => format!("{} without a name", object.kind()),
    }
}

fn as_text(results: &[(Object, Checked)]) -> String {
    let mut out = String::new();
    for (object, checked) in results {
        // Writing to a String cannot fail.
        let _ = match checked {
            Ok(well) => writeln!(out, "{} ({}): well\n{}", title(object), object.place, well.text),
            Err(problems) => {
                let list = indented(problems.iter());
                writeln!(
                    out,
                    "{} ({}): {} wrong\n{list}",
                    title(object),
                    object.place,
                    match problems.len() {
                        1 => "1 thing is".to_owned(),
                        n => format!("{n} things are"),
                    }
                )
            }
        };
    }
    out
}

fn as_json(results: &[(Object, Checked)]) -> Value {
    let objects: Vec<_> = results
        .iter()
        .map(|(object, checked)| {
            let problems: Vec<_> = checked
                .as_ref()
                .err()
                .into_iter()
                .flatten()
                .map(|problem| json!({"path": problem.path, "message": problem.message}))
                .collect();
            json!({
                "place": object.place,
                "namespace": object.namespace(),
                "name": object.name(),
                "problems": problems,
                "plan": checked.as_ref().ok().map(|well| &well.json),
            })
        })
        .collect();
    let ok = results.iter().all(|(_, checked)| checked.is_ok());
    json!({"ok": ok, "objects": objects})
}

fn plan_text(model: &Model) -> String {
    let mut lines = Vec::new();
    if model.suspend {
        lines.push("suspended: the operator does nothing for it".to_owned());
    }
    for seal in &model.seals {
        let (cloud, way) = match &seal.cloud {
            Cloud::Aws(aws) => ("AWS", aws_way(aws)),
            Cloud::Oci(oci) => ("OCI", oci_way(oci)),
        };
        lines.push(format!(
            "seal {} (priority {}): {cloud} KMS {}, {way}{}{}",
            seal.name,
            seal.priority,
            seal.cloud.configured_key(),
            match (seal.wraps, seal.disabled) {
                (true, false) => "",
                (true, true) => ", disabled: opens, wraps nothing new",
                (false, _) => ", neither wraps nor opens keys",
            },
            if seal.cloud.is_operators() {
                ", which a cluster admin must allow here"
            } else {
                ""
            }
        ));
    }
    lines.extend(model.keys.iter().map(|key| key_text(model, key)));
    for target in &model.targets {
        lines.push(format!(
            "target {}: Secret {} ({}){}",
            target.name,
            target.secret,
            target.type_.as_str(),
            match (target.adopt, target.delete_with_owner) {
                (true, _) => ", taken over if it exists and agrees",
                (_, true) => ", deleted with the SealConfig",
                _ => "",
            }
        ));
        for entry in &target.entries {
            let content = match &entry.content {
                EntryContent::Key {
                    version: KeyVersion::Previous,
                    key,
                    encoding,
                } => previous_text(model, key, *encoding),
                EntryContent::Key { key, encoding, .. } => {
                    format!("key {key}, {}", encoding_word(*encoding))
                }
                EntryContent::Template(_) => {
                    let keys: Vec<_> = entry.content.keys().into_iter().collect();
                    match keys.as_slice() {
                        [] => "template without keys".to_owned(),
                        [key] => format!("template with key {key}"),
                        keys => format!("template with keys {}", keys.join(", ")),
                    }
                }
                EntryContent::Stanza(stanza) => stanza_words(stanza),
                EntryContent::Variable(Variable::Text(text)) => format!("environment variable, {text}"),
                EntryContent::Variable(
                    Variable::AccessKeyId { seal } | Variable::SecretAccessKey { seal },
                ) => format!("environment variable, from the credentials of seal {seal}"),
            };
            lines.push(format!("  {}: {content}", entry.name));
        }
        if let Some(selector) = &target.selector {
            lines.push(format!(
                "  pods {selector}{}",
                if target.restart {
                    ": rolled when a key changes, if their workload allows it"
                } else {
                    ""
                }
            ));
        }
    }
    lines.extend(model.unseal.as_ref().map(|unseal| servers_text(model, unseal)));
    indented(lines.iter())
}

/// Which servers are unsealed, and how they are initialised.
fn servers_text(model: &Model, unseal: &Unseal) -> String {
    let split =
        |split: Split, what: &str| format!("{} {what} of which {} open", split.shares, split.threshold);
    let initialized = match unseal.initialize {
        None => "never initialised".to_owned(),
        Some(initialize) => {
            let shamir = initialize.shamir.map(|shamir| split(shamir, "unseal shares"));
            let recovery = initialize
                .recovery
                .map(|recovery| split(recovery, "recovery keys (with a native seal)"));
            let members: Vec<String> = shamir.into_iter().chain(recovery).collect();
            let token = if initialize.keep_token { "kept" } else { "revoked" };
            format!(
                "initialised once with {}, kept in Secret {}; root token {token}",
                members.join(" or "),
                secret_name(&model.id)
            )
        }
    };
    let product = match unseal.product {
        UnsealProduct::Vault => "Vault",
        UnsealProduct::OpenBao => "OpenBao",
    };
    format!("unseal: {product} on pods {}, {initialized}", unseal.selector)
}

fn stanza_words(stanza: &Stanza) -> String {
    let join = |words: Vec<&str>| words.join(", ");
    let seals = || join(stanza.seals().map(|seal| seal.name.as_str()).collect());
    let keys = || join(stanza.keys().into_iter().collect());
    match stanza {
        Stanza::Vault(_) => format!("Vault's seal blocks for seals {}", seals()),
        Stanza::OpenBao(_) => format!("OpenBao's seal blocks for seals {}", seals()),
        Stanza::OpenBaoStatic(_) => format!("OpenBao's static seal with key {}", keys()),
        Stanza::Boundary { purposes, .. } => format!(
            "Boundary's kms blocks for seal {}, purposes {}",
            seals(),
            join(purposes.iter().map(|purpose| purpose.as_str()).collect())
        ),
        Stanza::BoundaryAead(_) => format!("Boundary's kms blocks with keys {}", keys()),
    }
}

/// Where a key comes from, what opens it, and where the operator's copies of it go.
fn key_text(model: &Model, key: &Key) -> String {
    let store = secret_name(&model.id);
    let under: Vec<_> = wrapping(model, key).map(|seal| seal.name.as_str()).collect();
    let kept = match under.as_slice() {
        [] => "under no seal, for none of them wraps: it cannot be made".to_owned(),
        [one] => format!("under seal {one}, into Secret {store}"),
        several => format!("under seals {}, into Secret {store}", several.join(", ")),
    };
    let said = match &key.origin {
        Origin::Brought => {
            let copies: Vec<_> = key
                .copies
                .iter()
                .map(|copy| {
                    let source = match &copy.source {
                        Source::Inline(_) => "inline".to_owned(),
                        Source::Entry(entry) => format!("{entry}, entry {}", entry.key),
                    };
                    format!("{} ({}, {source})", copy.seal, sending::word(copy.format))
                })
                .collect();
            let open = if copies.len() == 1 {
                "opened by seal"
            } else {
                "every copy opened and compared: seals"
            };
            let more = if under.is_empty() {
                String::new()
            } else {
                format!("; wrapped {kept}, too")
            };
            format!("{open} {}{more}", copies.join(", "))
        }
        Origin::Generated { bytes, after, .. } => {
            let after = after.map_or_else(String::new, |after| format!(", a new version every {after:#}"));
            format!("{bytes} bytes made by the operator and wrapped {kept}{after}")
        }
        Origin::Imported { secret, entry } => {
            format!("taken from Secret {secret}, entry {entry}, and wrapped {kept}")
        }
        Origin::Initialized(_) => format!("answered by a server that was initialised, and wrapped {kept}"),
    };
    format!("key {}: {said}", key.name)
}

fn previous_text(model: &Model, key: &str, encoding: Encoding) -> String {
    let kept = model
        .keys
        .iter()
        .any(|found| found.name == key && found.keeps_previous());
    if kept {
        format!(
            "previous version of key {key}, {}, once there is one",
            encoding_word(encoding)
        )
    } else {
        format!("previous version of key {key}: none is kept, left out")
    }
}

fn indented(lines: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let mut out = String::new();
    for line in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn aws_way(aws: &AwsSeal) -> String {
    let mut parts = Vec::new();
    match &aws.region {
        Some(region) => parts.push(format!("region {region}")),
        None => parts.push("the operator's own region".to_owned()),
    }
    if let Some(endpoint) = &aws.endpoint {
        parts.push(format!("endpoint {endpoint}"));
    }
    parts.push(match &aws.credentials {
        Credentials::DefaultChain => "the operator's own identity".to_owned(),
        Credentials::PodIdentity => "the operator's Pod Identity".to_owned(),
        Credentials::InstanceMetadata => "the operator's node role".to_owned(),
        Credentials::ServiceAccount { name, .. } => format!("ServiceAccount {name}"),
        Credentials::Secret { name, .. } => format!("credentials in Secret {name}"),
    });
    if let Some(role) = &aws.assume_role {
        parts.push(format!("role {}", role.role_arn));
    }
    parts.join(", ")
}

fn oci_way(oci: &OciSeal) -> String {
    let who = match &oci.credentials {
        oci::Credentials::InstancePrincipal => "the operator's instance principal".to_owned(),
        oci::Credentials::ResourcePrincipal => "the operator's resource principal".to_owned(),
        oci::Credentials::ApiKey { secret } => format!("API key in Secret {secret}"),
        oci::Credentials::WorkloadIdentity { service_account } => {
            format!("workload identity of ServiceAccount {service_account}")
        }
        oci::Credentials::Caller => "your own identity".to_owned(),
    };
    format!("vault {}, {who}", oci.crypto_endpoint)
}

fn plan_json(model: &Model) -> Value {
    let seals: Vec<_> = model
        .seals
        .iter()
        .map(|seal| {
            let region = match &seal.cloud {
                Cloud::Aws(aws) => aws.region.as_ref().map(ToString::to_string),
                Cloud::Oci(oci) => Some(oci.key.region().to_owned()),
            };
            json!({
                "name": seal.name,
                "priority": seal.priority,
                "provider": seal.cloud.provider(),
                "key": seal.cloud.configured_key(),
                "region": region,
                "credentialSource": seal.cloud.credential_source(),
                "operatorIdentity": seal.cloud.is_operators(),
                "wraps": seal.wraps && !seal.disabled,
                "opens": seal.wraps,
            })
        })
        .collect();
    let keys: Vec<_> = model
        .keys
        .iter()
        .map(|key| {
            let opened: Vec<_> = key.copies.iter().map(|copy| &copy.seal).collect();
            let under: Vec<_> = wrapping(model, key).map(|seal| &seal.name).collect();
            json!({
                "name": key.name,
                "source": match key.origin {
                    Origin::Brought => Provenance::Brought,
                    Origin::Generated { .. } => Provenance::Generated,
                    Origin::Imported { .. } => Provenance::Imported,
                    Origin::Initialized(_) => Provenance::Initialized,
                }.field(),
                // By what the user brings, and by what the operator makes of it.
                "openedBy": opened,
                "wrappedUnder": under,
            })
        })
        .collect();
    let targets: Vec<_> = model
        .targets
        .iter()
        .map(|target| {
            let entries: Vec<_> = target.entries.iter().map(|entry| &entry.name).collect();
            json!({
                "name": target.name,
                "secret": target.secret,
                "keys": target.keys(),
                "entries": entries,
                "restart": target.restart,
            })
        })
        .collect();
    let store = needs_store(model).then(|| secret_name(&model.id));
    json!({"suspend": model.suspend, "store": store, "seals": seals, "keys": keys, "targets": targets})
}

fn encoding_word(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Raw => "raw bytes",
        Encoding::Base64 => "base64",
        Encoding::Base64Url => "base64url",
        Encoding::Hex => "hex",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cli) fn model(spec: &Value) -> Model {
        check(&object(spec)).unwrap()
    }

    fn object(spec: &Value) -> Object {
        Object {
            place: "seal.yaml".to_owned(),
            value: json!({
                "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "billing", "namespace": "billing"},
                "spec": spec, "status": {"whatever": 1},
            }),
        }
    }

    fn good() -> Value {
        json!({
            "seals": [{"name": "aws", "awskms": {
                "kmsKeyID": "alias/billing", "region": "eu-west-1", "credentials": {"serviceAccountRef": {"name": "billing"}},
            }}],
            "keys": [{"name": "master", "wrapped": [{"seal": "aws", "format": "kms", "inline": "eA=="}]}],
            "targets": [{
                "name": "app", "podSelector": {"matchLabels": {"app": "billing"}}, "onChange": "Restart",
                "secret": {"name": "billing-key", "data": [
                    {"name": "master.key", "key": {"name": "master"}},
                    {"name": "old.key", "key": {"name": "master", "version": "previous"}},
                    {"name": "app.toml", "template": "k = {{ keys[\"master\"].base64 }}"},
                ]},
            }],
        })
    }

    #[test]
    fn the_plan_tells_seals_keys_and_secrets() {
        let object = object(&good());
        let checked = check(&object);
        let text = as_text(&[(object, checked.map(Well::of))]);
        let want = "\
billing/billing (seal.yaml): well
  seal aws (priority 50): AWS KMS alias/billing, region eu-west-1, ServiceAccount billing
  key master: opened by seal aws (kms, inline)
  target app: Secret billing-key (Opaque)
    master.key: key master, raw bytes
    old.key: previous version of key master: none is kept, left out
    app.toml: template with key master
    pods app=billing: rolled when a key changes, if their workload allows it

";
        assert_eq!(text, want);
    }

    #[test]
    fn the_plan_tells_what_configuration_is_written() {
        let mut value = good();
        value["keys"][0] = json!({"name": "static", "purpose": "static", "generate": {}});
        value["targets"][0]["secret"] = json!({
            "name": "x",
            "data": [
                {"name": "vault.hcl", "stanza": {"vault": {"seals": ["aws"]}}},
                {"name": "kms.hcl", "stanza": {"boundary": {"seal": "aws", "purposes": ["root", "bsr"]}}},
                {"name": "seal.hcl", "stanza": {"openbaoStatic": {"key": "static", "mountPath": "/seal"}}},
            ],
            "env": {"openbao": {"seals": ["aws"]}},
        });
        let object = object(&value);
        let checked = check(&object);
        let text = as_text(&[(object, checked.map(Well::of))]);
        for line in [
            "    vault.hcl: Vault's seal blocks for seals aws\n",
            "    kms.hcl: Boundary's kms blocks for seal aws, purposes root, bsr\n",
            "    seal.hcl: OpenBao's static seal with key static\n",
            "    current.key: key static, raw bytes\n",
            "    previous.key: previous version of key static, raw bytes, once there is one\n",
            "    VAULT_SEAL_TYPE: environment variable, awskms\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn the_json_report_has_the_same_parts() {
        let object = object(&good());
        let checked = check(&object);
        let report = as_json(&[(object, checked.map(Well::of))]);
        assert_eq!(report["ok"], true);
        assert_eq!(
            report["objects"][0]["plan"]["keys"],
            json!([{"name": "master", "source": "wrapped", "openedBy": ["aws"], "wrappedUnder": []}])
        );
        assert_eq!(report["objects"][0]["plan"]["store"], Value::Null);
    }

    fn stored() -> Value {
        json!({
            "seals": [
                {"name": "a", "awskms": {"kmsKeyID": "alias/a", "region": "eu-west-1", "credentials": {"secretRef": {"name": "s"}}}},
                {"name": "b", "priority": 60, "awskms": {
                    "kmsKeyID": "alias/b", "region": "us-east-1", "credentials": {"secretRef": {"name": "s"}},
                }},
                {"name": "c", "priority": 70, "disabled": true, "awskms": {
                    "kmsKeyID": "alias/c", "region": "us-east-1", "credentials": {"secretRef": {"name": "s"}},
                }},
            ],
            "keys": [
                {"name": "made", "generate": {"rotation": {"after": "2160h"}}},
                {"name": "taken", "import": {"secretKeyRef": {"name": "plain", "key": "root"}}},
                {"name": "brought", "wrapped": [{"seal": "c", "inline": "eA=="}]},
            ],
            "targets": [{"name": "app", "secret": {"name": "k", "data": [
                {"name": "old", "key": {"name": "made", "version": "previous", "encoding": "hex"}},
            ]}}],
        })
    }

    #[test]
    fn the_plan_tells_what_is_made_and_where_it_is_kept() {
        let object = object(&stored());
        let checked = check(&object);
        let text = as_text(&[(object, checked.map(Well::of))]);
        let want = "\
billing/billing (seal.yaml): well
  seal a (priority 50): AWS KMS alias/a, region eu-west-1, credentials in Secret s
  seal b (priority 60): AWS KMS alias/b, region us-east-1, credentials in Secret s
  seal c (priority 70): AWS KMS alias/c, region us-east-1, credentials in Secret s, disabled: opens, wraps nothing new
  key made: 32 bytes made by the operator and wrapped under seals a, b, into Secret billing.sealconfig.wrapped, a new version every 2160h
  key taken: taken from Secret plain, entry root, and wrapped under seals a, b, into Secret billing.sealconfig.wrapped
  key brought: opened by seal c (blobinfo, inline); wrapped under seals a, b, into Secret billing.sealconfig.wrapped, too
  target app: Secret k (Opaque)
    old: previous version of key made, hex, once there is one

";
        assert_eq!(text, want);
    }

    #[test]
    fn the_json_plan_tells_the_same() {
        let object = object(&stored());
        let checked = check(&object);
        let plan = as_json(&[(object, checked.map(Well::of))])["objects"][0]["plan"].clone();
        assert_eq!(plan["store"], "billing.sealconfig.wrapped");
        assert_eq!(
            plan["keys"],
            json!([
                {"name": "made", "source": "generate", "openedBy": [], "wrappedUnder": ["a", "b"]},
                {"name": "taken", "source": "import", "openedBy": [], "wrappedUnder": ["a", "b"]},
                {"name": "brought", "source": "wrapped", "openedBy": ["c"], "wrappedUnder": ["a", "b"]},
            ])
        );
        let wraps: Vec<_> = plan["seals"]
            .as_array()
            .unwrap()
            .iter()
            .map(|seal| &seal["wraps"])
            .collect();
        assert_eq!(wraps, [true, true, false]);
    }

    #[test]
    fn schema_and_rules_are_told() {
        let problem = |change: &dyn Fn(&mut Value)| {
            let mut spec = good();
            change(&mut spec);
            let problems = check(&object(&spec)).unwrap_err();
            problems[0].to_string()
        };
        assert!(problem(&|spec| spec["sealz"] = json!([])).starts_with("spec.sealz: no such field"),);
        assert!(
            problem(&|spec| {
                spec["targets"][0]["secret"]["data"][2]["template"] = json!("{{ x }}");
            })
            .contains("line 1, column 1")
        );
        assert!(
            problem(&|spec| spec["targets"][0]["secret"]["type"] = json!("kubernetes.io/tls"))
                .contains("tls.crt")
        );
        let mut elsewhere = object(&good());
        elsewhere.value["apiVersion"] = json!("autounseal.dev/v1");
        assert_eq!(check(&elsewhere).unwrap_err()[0].path, "apiVersion");
        let mut nowhere = object(&good());
        nowhere.value["metadata"] = json!({"name": "x"});
        assert!(check(&nowhere).unwrap_err()[0].message.contains("--namespace"));
    }
}
