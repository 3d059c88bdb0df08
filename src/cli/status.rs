//! `autounseal status`: what the operator says of SealConfigs and ManagedKeys, at a glance.

mod managed;

use std::fmt::Write as _;

use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use super::{
    Done, Failure, Output,
    cluster::{self, ClusterArgs},
    output,
};
use crate::{
    api::{Reason, SealConfig, SealConfigStatus, SealHealth, SealSpec},
    kube_ext::{bounded, cluster::read_fault},
    seal::store::{Class, sets},
};

/// SealConfigs that are asked for at once.
const PAGE: u32 = 500;

/// Print a table of SealConfigs with their seals, keys and pods, and of ManagedKeys with their distributions
///
/// Shows what the operator last wrote into each SealConfig's status: whether it is Ready and why not, each seal's KMS key and
/// state, each key's version, the seals that it is wrapped under, its next rotation and the seals that once opened it and were
/// taken out since (rotate it, if one of them is compromised), how many pods run with what was delivered, which servers are
/// unsealed, and which shares they answered when the operator initialised them; of ManagedKeys the alias, version and state in
/// each place that they were brought to. Nothing but these objects is read, and no KMS is asked; `doctor` does that.
///
/// Examples:
///
///   autounseal status -n openbao openbao
///   autounseal status -A
///   autounseal status -A -o json | jq -r '.sealConfigs[] | select(.ready != "True") | .namespace + "/" + .name'
///
/// Exit codes: 0 everything shown is Ready (or there is nothing), 1 something is not, 2 misuse.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct StatusArgs {
    /// Only the SealConfig and the ManagedKey of this name
    #[arg(value_name = "NAME", conflicts_with = "all_namespaces")]
    name: Option<String>,
    /// The objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// The namespace. Default: that of the context
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How to print the table
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) async fn run(args: &StatusArgs) -> Done {
    let cluster = cluster::connect(&args.cluster).await?;
    let namespace = args.namespace.clone().unwrap_or(cluster.namespace);
    let (configs, keys) = match (&args.name, args.all_namespaces) {
        (Some(name), _) => {
            let key = managed::one(&cluster.client, &namespace, name).await?;
            match (cluster::seal_config(&cluster.client, &namespace, name).await, key) {
                (Ok(config), key) => (vec![config], key.into_iter().collect()),
                // Of a ManagedKey alone is spoken as well.
                (Err(Failure::Misuse(_)), Some(key)) => (Vec::new(), vec![key]),
                (Err(failure), _) => return Err(failure),
            }
        }
        (None, true) => (
            list(&Api::all(cluster.client.clone()), "all namespaces").await?,
            managed::list(&Api::all(cluster.client)).await?,
        ),
        (None, false) => {
            let place = format!("namespace {namespace}");
            let found = list(&Api::namespaced(cluster.client.clone(), &namespace), &place).await?;
            let keys = managed::list(&Api::namespaced(cluster.client, &namespace)).await?;
            if found.is_empty() && keys.is_empty() {
                output::note(&format!(
                    "there is no SealConfig in {place}; -A shows those of all namespaces"
                ));
            }
            (found, keys)
        }
    };
    let rows: Vec<Row> = configs.iter().map(Row::of).collect();
    let keys: Vec<managed::KeyRow> = keys.iter().map(managed::KeyRow::of).collect();
    match args.output {
        Output::Json => {
            let mut shown = as_json(&rows);
            let well = rows.iter().all(Row::is_ready) && keys.iter().all(managed::KeyRow::is_ready);
            shown["ok"] = json!(well);
            shown["managedKeys"] = managed::as_json(&keys);
            output::json(&shown);
        }
        Output::Text if rows.is_empty() && keys.is_empty() => {}
        Output::Text => output::report(&(as_text(&rows) + &managed::as_text(&keys))),
    }
    if rows.iter().all(Row::is_ready) && keys.iter().all(managed::KeyRow::is_ready) {
        Ok(())
    } else {
        Err(Failure::Told)
    }
}

async fn list(api: &Api<SealConfig>, place: &str) -> Result<Vec<SealConfig>, Failure> {
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = bounded(api.list(&params)).await.map_err(|error| {
            let fault = cluster::yours(read_fault(&error, "list sealconfigs", "", Reason::SourceMissing));
            // The words are those of one namespace, which is left empty here.
            Failure::No(fault.message.replace("in namespace ", &format!("in {place}")))
        })?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    found.sort_by_key(|config| (config.namespace(), config.name_any()));
    Ok(found)
}

/// One SealConfig, as it is shown.
struct Row {
    namespace: String,
    name: String,
    ready: String,
    reason: String,
    message: String,
    /// Whether the status speaks of the spec as it is now.
    up_to_date: bool,
    suspended: bool,
    seals: Vec<SealRow>,
    keys: Vec<KeyRow>,
    targets: Vec<TargetRow>,
    servers: Option<ServersRow>,
}

/// The servers that are unsealed, and what they answered when they were initialised.
struct ServersRow {
    initialized: Option<bool>,
    pods: usize,
    sealed: u32,
    cluster_id: Option<String>,
    root_token_held_since: Option<String>,
    sets: Vec<SetRow>,
}

struct SetRow {
    what: &'static str,
    /// Its number.
    set: u32,
    items: usize,
    /// The seals under which every item of it is wrapped.
    wrapped_under: Vec<String>,
}

impl ServersRow {
    fn of(status: &SealConfigStatus) -> Option<Self> {
        let unseal = status.unseal.as_ref()?;
        let classes = [
            (Class::UnsealShare, "unseal shares"),
            (Class::RecoveryShare, "recovery keys"),
            (Class::RootToken, "root token"),
        ];
        let sets = classes.into_iter().filter_map(|(class, what)| {
            let of_class = || {
                status
                    .keys
                    .iter()
                    .filter(|key| sets::class(&key.name) == Some(class))
            };
            let set = of_class().map(|key| key.version).max()?;
            let items: Vec<_> = of_class().filter(|key| key.version == set).collect();
            let everywhere = |seal: &&String| items.iter().all(|key| key.wrapped_under.contains(seal));
            Some(SetRow {
                what,
                set,
                wrapped_under: items[0]
                    .wrapped_under
                    .iter()
                    .filter(everywhere)
                    .cloned()
                    .collect(),
                items: items.len(),
            })
        });
        Some(Self {
            initialized: unseal.initialized,
            pods: unseal.pods.len(),
            sealed: unseal.sealed,
            cluster_id: unseal.cluster_id.clone(),
            root_token_held_since: unseal.root_token_held_since.as_ref().map(|at| at.0.to_string()),
            sets: sets.collect(),
        })
    }
}

struct SealRow {
    name: String,
    provider: &'static str,
    key_id: String,
    disabled: bool,
    state: &'static str,
    reason: Option<String>,
    message: Option<String>,
}

struct KeyRow {
    name: String,
    version: u32,
    wrapped_under: Vec<String>,
    next_rotation: Option<String>,
    exposed_under: Vec<String>,
}

struct TargetRow {
    name: String,
    secret: String,
    /// Selected, using, current.
    pods: Option<[u32; 3]>,
}

impl Row {
    fn of(config: &SealConfig) -> Self {
        let status = config.status.clone().unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Ready");
        let seals = config.spec.seals.iter().map(|seal| {
            let known = status.seals.iter().find(|status| status.name == seal.name);
            let (provider, configured) = key_of(seal);
            SealRow {
                name: seal.name.clone(),
                provider,
                key_id: known.and_then(|known| known.key_id.clone()).unwrap_or(configured),
                disabled: seal.disabled,
                state: match known.map(|known| known.state).unwrap_or_default() {
                    SealHealth::Unknown => "Unknown",
                    SealHealth::Healthy => "Healthy",
                    SealHealth::Unhealthy => "Unhealthy",
                },
                reason: known.and_then(|known| known.reason.clone()),
                message: known.and_then(|known| known.message.clone()),
            }
        });
        let keys = config.spec.keys.iter().map(|key| {
            let known = status.keys.iter().find(|status| status.name == key.name);
            let known = known.cloned().unwrap_or_default();
            KeyRow {
                name: key.name.clone(),
                version: known.version,
                wrapped_under: known.wrapped_under,
                next_rotation: known.next_rotation_time.map(|time| time.0.to_string()),
                exposed_under: known.exposed_under,
            }
        });
        let targets = config.spec.targets.iter().map(|target| {
            let known = status.targets.iter().find(|status| status.name == target.name);
            TargetRow {
                name: target.name.clone(),
                secret: target.secret.name.clone(),
                pods: known
                    .and_then(|known| known.pods)
                    .map(|pods| [pods.selected, pods.using, pods.current]),
            }
        });
        Self {
            namespace: config.namespace().unwrap_or_default(),
            name: config.name_any(),
            ready: ready.map_or("Unknown", |ready| &ready.status).to_owned(),
            reason: ready.map_or("Pending", |ready| &ready.reason).to_owned(),
            message: ready.map_or("", |ready| &ready.message).to_owned(),
            up_to_date: status.observed_generation == config.metadata.generation,
            suspended: config.spec.suspend,
            seals: seals.collect(),
            keys: keys.collect(),
            targets: targets.collect(),
            servers: ServersRow::of(&status),
        }
    }

    fn is_ready(&self) -> bool {
        self.ready == "True" && self.up_to_date
    }
}

/// The cloud and the key as the spec has it.
fn key_of(seal: &SealSpec) -> (&'static str, String) {
    match (&seal.awskms, &seal.ocikms) {
        (Some(aws), _) => ("awskms", aws.kms_key_id.clone()),
        (None, Some(oci)) => ("ocikms", oci.key_id.clone()),
        (None, None) => ("", String::new()),
    }
}

fn as_json(rows: &[Row]) -> Value {
    let configs: Vec<_> = rows
        .iter()
        .map(|row| {
            let seals: Vec<_> = row
                .seals
                .iter()
                .map(|seal| {
                    json!({
                        "name": seal.name, "provider": seal.provider, "keyID": seal.key_id, "disabled": seal.disabled,
                        "state": seal.state, "reason": seal.reason, "message": seal.message,
                    })
                })
                .collect();
            let keys: Vec<_> = row
                .keys
                .iter()
                .map(|key| {
                    json!({
                        "name": key.name, "version": key.version, "wrappedUnder": key.wrapped_under,
                        "nextRotationTime": key.next_rotation, "exposedUnder": key.exposed_under,
                    })
                })
                .collect();
            let targets: Vec<_> = row
                .targets
                .iter()
                .map(|target| {
                    let pods = target.pods.map(|[selected, using, current]| {
                        json!({"selected": selected, "using": using, "current": current})
                    });
                    json!({"name": target.name, "secret": target.secret, "pods": pods})
                })
                .collect();
            json!({
                "namespace": row.namespace, "name": row.name, "ready": row.ready, "reason": row.reason,
                "message": row.message, "upToDate": row.up_to_date, "suspended": row.suspended, "seals": seals,
                "keys": keys, "targets": targets, "unseal": row.servers.as_ref().map(servers_json),
            })
        })
        .collect();
    json!({"ok": rows.iter().all(Row::is_ready), "sealConfigs": configs})
}

fn servers_json(servers: &ServersRow) -> Value {
    let sets: Vec<_> = servers
        .sets
        .iter()
        .map(|set| json!({"what": set.what, "set": set.set, "items": set.items, "wrappedUnder": set.wrapped_under}))
        .collect();
    json!({
        "initialized": servers.initialized, "pods": servers.pods, "sealed": servers.sealed,
        "clusterID": servers.cluster_id, "rootTokenHeldSince": servers.root_token_held_since, "sets": sets,
    })
}

fn as_text(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{}/{}: {}",
            row.namespace,
            row.name,
            match (row.is_ready(), row.up_to_date) {
                (true, _) if row.reason == "Ready" => "Ready".to_owned(),
                (true, _) => format!("Ready, {}", row.reason),
                (false, true) => format!("not Ready, {}", row.reason),
                (false, false) => format!("changed since the operator looked (then {})", row.reason),
            }
        );
        if !row.is_ready() && !row.message.is_empty() {
            let _ = writeln!(out, "  {}", row.message);
        }
        out.push_str(&seals_text(row));
        out.push_str(&keys_text(row));
        out.push_str(&targets_text(row));
        out.push_str(&row.servers.as_ref().map(servers_text).unwrap_or_default());
        out.push('\n');
    }
    if rows.len() > 1 {
        let waiting = rows.iter().filter(|row| !row.is_ready()).count();
        let _ = writeln!(out, "{} SealConfigs, {waiting} not Ready", rows.len());
    }
    out
}

fn seals_text(row: &Row) -> String {
    let seals = row.seals.iter().map(|seal| {
        let mut state = seal.state.to_owned();
        if let Some(reason) = &seal.reason {
            let _ = write!(state, ", {reason}");
        }
        if seal.disabled {
            state.push_str(", disabled");
        }
        vec![
            seal.name.clone(),
            seal.provider.to_owned(),
            state,
            seal.key_id.clone(),
        ]
    });
    let mut out = table(&["SEAL", "PROVIDER", "STATE", "KEY"], seals.collect());
    for seal in &row.seals {
        if let Some(message) = &seal.message {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "    {}: {message}", seal.name);
        }
    }
    out
}

fn keys_text(row: &Row) -> String {
    let listed = |names: &[String]| {
        if names.is_empty() {
            "-".to_owned()
        } else {
            names.join(",")
        }
    };
    let keys = row.keys.iter().map(|key| {
        vec![
            key.name.clone(),
            key.version.to_string(),
            listed(&key.wrapped_under),
            key.next_rotation.clone().unwrap_or_else(|| "-".to_owned()),
            listed(&key.exposed_under),
        ]
    });
    let head = [
        "KEY",
        "VERSION",
        "WRAPPED UNDER",
        "NEXT ROTATION",
        "EXPOSED UNDER",
    ];
    table(&head, keys.collect())
}

fn targets_text(row: &Row) -> String {
    let targets = row.targets.iter().map(|target| {
        let pods = target.pods.map_or_else(
            || "-".to_owned(),
            |[selected, using, current]| match selected - using.min(selected) {
                0 => format!("{current}/{using} current"),
                idle => format!("{current}/{using} current, {idle} selected without using it"),
            },
        );
        vec![target.name.clone(), target.secret.clone(), pods]
    });
    table(&["TARGET", "SECRET", "PODS"], targets.collect())
}

fn servers_text(servers: &ServersRow) -> String {
    let known = match servers.initialized {
        None => "no server has answered yet".to_owned(),
        Some(false) => "not initialised".to_owned(),
        Some(true) => format!(
            "{}/{} unsealed",
            servers.pods.saturating_sub(servers.sealed as usize),
            servers.pods
        ),
    };
    let cluster = servers.cluster_id.as_ref().map(|id| format!(", cluster {id}"));
    let token = servers
        .root_token_held_since
        .as_ref()
        .map(|since| format!(", root token held since {since}"));
    let mut out = format!(
        "  servers: {known}{}{}\n",
        cluster.unwrap_or_default(),
        token.unwrap_or_default()
    );
    let sets = servers.sets.iter().map(|set| {
        vec![
            set.what.to_owned(),
            set.set.to_string(),
            set.items.to_string(),
            if set.wrapped_under.is_empty() {
                "-".to_owned()
            } else {
                set.wrapped_under.join(",")
            },
        ]
    });
    out.push_str(&table(
        &["ANSWERED", "SET", "ITEMS", "WRAPPED UNDER"],
        sets.collect(),
    ));
    out
}

/// Columns as wide as their widest cell; nothing for no rows.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut all = vec![head.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()];
    all.extend(rows);
    let width = |column: usize| {
        all.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for row in &all {
        let mut line = String::from("  ");
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl Fn(&mut Value)) -> SealConfig {
        let mut value = json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "openbao", "namespace": "bao", "generation": 3},
            "spec": {
                "seals": [
                    {"name": "aws", "awskms": {"kmsKeyID": "alias/a"}},
                    {"name": "oci", "disabled": true, "ocikms": {
                        "keyID": "ocid1.key.oc1.iad.v.k", "cryptoEndpoint": "https://c", "managementEndpoint": "https://m",
                    }},
                ],
                "keys": [{"name": "static", "generate": {}}],
                "targets": [{"name": "server", "secret": {"name": "seal"}}],
            },
            "status": {
                "observedGeneration": 3,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "all is well",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "seals": [{"name": "oci", "provider": "ocikms", "keyID": "ocid1.key.oc1.iad.v.k", "state": "Unhealthy",
                    "reason": "KMSUnavailable", "message": "the vault does not answer"}],
                "keys": [{"name": "static", "version": 2, "wrappedUnder": ["aws", "oci"], "exposedUnder": ["old"],
                    "nextRotationTime": "2026-04-01T00:00:00Z"}],
                "targets": [{"name": "server", "secret": "seal", "pods": {"selected": 4, "using": 3, "current": 2}}],
            },
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_table_tells_seals_keys_and_pods() {
        let text = as_text(&[Row::of(&config(|_| {}))]);
        let want = "\
bao/openbao: Ready
  SEAL  PROVIDER  STATE                                KEY
  aws   awskms    Unknown                              alias/a
  oci   ocikms    Unhealthy, KMSUnavailable, disabled  ocid1.key.oc1.iad.v.k
    oci: the vault does not answer
  KEY     VERSION  WRAPPED UNDER  NEXT ROTATION         EXPOSED UNDER
  static  2        aws,oci        2026-04-01T00:00:00Z  old
  TARGET  SECRET  PODS
  server  seal    2/3 current, 1 selected without using it

";
        assert_eq!(text, want);
    }

    #[test]
    fn servers_are_told_with_what_they_answered() {
        let row = Row::of(&config(|value| {
            value["status"]["unseal"] = json!({"initialized": true, "sealed": 1, "clusterID": "c1",
                "rootTokenHeldSince": "2026-01-02T00:00:00Z", "pods": [{"name": "a"}, {"name": "b"}]});
            let item = |name: &str, set: u32, under: &[&str]| json!({"name": name, "version": set, "wrappedUnder": under});
            let keys = value["status"]["keys"].as_array_mut().unwrap();
            keys.extend([
                item("share.1", 2, &["aws", "oci"]),
                item("share.2", 2, &["aws"]),
                item("share.3", 1, &["aws"]),
                item("root-token.1", 2, &[]),
            ]);
        }));
        let text = as_text(std::slice::from_ref(&row));
        let want = "  servers: 1/2 unsealed, cluster c1, root token held since 2026-01-02T00:00:00Z
  ANSWERED       SET  ITEMS  WRAPPED UNDER
  unseal shares  2    2      aws
  root token     2    1      -

";
        assert!(text.ends_with(want), "{text}");
        let report = as_json(&[row]);
        let sets = &report["sealConfigs"][0]["unseal"]["sets"];
        assert_eq!(
            sets[0],
            json!({"what": "unseal shares", "set": 2, "items": 2, "wrappedUnder": ["aws"]})
        );
    }

    #[test]
    fn what_is_not_ready_says_why() {
        let failed = Row::of(&config(|value| {
            value["status"]["conditions"][0]["status"] = json!("False");
            value["status"]["conditions"][0]["reason"] = json!("StoreMissing");
            value["status"]["conditions"][0]["message"] = json!("restore it");
        }));
        assert!(!failed.is_ready());
        let text = as_text(&[failed, Row::of(&config(|_| {}))]);
        assert!(
            text.starts_with("bao/openbao: not Ready, StoreMissing\n  restore it\n"),
            "{text}"
        );
        assert!(text.ends_with("2 SealConfigs, 1 not Ready\n"), "{text}");
    }

    #[test]
    fn a_status_of_another_spec_is_not_ready() {
        let changed = Row::of(&config(|value| value["metadata"]["generation"] = json!(4)));
        assert!(!changed.is_ready());
        assert!(as_text(&[changed]).contains("changed since the operator looked"));
        let unseen = Row::of(&config(|value| {
            value.as_object_mut().unwrap().remove("status");
        }));
        assert_eq!(
            (unseen.ready.as_str(), unseen.reason.as_str()),
            ("Unknown", "Pending")
        );
        assert!(!unseen.is_ready());
    }

    #[test]
    fn the_json_keeps_its_names() {
        let report = as_json(&[Row::of(&config(|_| {}))]);
        let want = json!({"ok": true, "sealConfigs": [{
            "namespace": "bao", "name": "openbao", "ready": "True", "reason": "Ready", "message": "all is well",
            "upToDate": true, "suspended": false,
            "seals": [
                {"name": "aws", "provider": "awskms", "keyID": "alias/a", "disabled": false, "state": "Unknown",
                    "reason": null, "message": null},
                {"name": "oci", "provider": "ocikms", "keyID": "ocid1.key.oc1.iad.v.k", "disabled": true,
                    "state": "Unhealthy", "reason": "KMSUnavailable", "message": "the vault does not answer"},
            ],
            "keys": [{"name": "static", "version": 2, "wrappedUnder": ["aws", "oci"],
                "nextRotationTime": "2026-04-01T00:00:00Z", "exposedUnder": ["old"]}],
            "targets": [{"name": "server", "secret": "seal", "pods": {"selected": 4, "using": 3, "current": 2}}],
            "unseal": null,
        }]});
        assert_eq!(report, want);
    }
}
