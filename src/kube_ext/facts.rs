//! Facts from objects: the few fields that decisions need, so that nothing else stays in memory.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, Volume};
use kube::api::ObjectMeta;
use serde_json::{Map, Value, json};

use super::names;
use crate::seal::observed::{
    ContainerFacts, Delivered, Mark, NamespaceFacts, PodFacts, SecretFacts, SecretUse,
};

/// A Secret's facts, from its metadata.
pub fn secret(metadata: &ObjectMeta) -> SecretFacts {
    let annotations = metadata.annotations.as_ref();
    let annotation = |name: &str| annotations.and_then(|all| all.get(name));
    SecretFacts {
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        owner_uid: annotation(names::OWNER_UID).cloned(),
        owner_name: annotation(names::OWNER_NAME).cloned(),
        adopt_by: annotation(names::ADOPT_BY).cloned(),
        delivered: annotations.map(delivered).unwrap_or_default(),
        deleting: metadata.deletion_timestamp.is_some(),
    }
}

/// What a namespace's label and annotations say of the operator's own identity (security rule S3), and of the keys that
/// its seals may use (S20).
pub fn namespace(metadata: &ObjectMeta) -> NamespaceFacts {
    let label = metadata
        .labels
        .as_ref()
        .and_then(|all| all.get(names::OPERATOR_IDENTITY));
    let grants = metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(names::GRANTS));
    let allowed = metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(names::ALLOWED_SEALS));
    let list = |text: &String| {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(Into::into)
            .collect()
    };
    NamespaceFacts {
        operator_identity: label.is_some_and(|value| value == names::ALLOWED),
        grants: grants.map(list).unwrap_or_default(),
        // An empty list allows nothing.
        allowed_seals: allowed.map(list),
    }
}

/// What the annotations of a delivered Secret say of its content.
pub fn delivered(annotations: &BTreeMap<String, String>) -> Delivered {
    let time = |name: &str| {
        annotations
            .get(name)
            .and_then(|text| text.parse::<Timestamp>().ok())
    };
    let marks = annotations
        .get(names::KEYS)
        .and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    Delivered {
        count: annotations
            .get(names::DELIVERED)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default(),
        keys_changed: time(names::KEYS_CHANGED),
        content_changed: time(names::CONTENT_CHANGED),
        marks: marks
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(key, value)| Some((key, mark(&value)?)))
            .collect(),
    }
}

fn mark(value: &Value) -> Option<Mark> {
    let number = |value: &Value| u32::try_from(value.get("version")?.as_u64()?).ok();
    let text = |value: &Value| value.get("mark")?.as_str().map(ToOwned::to_owned);
    let previous = value
        .get("previous")
        .and_then(|previous| Some((number(previous)?, text(previous)?)));
    Some(Mark {
        version: number(value)?,
        mark: text(value)?,
        previous,
        stored: value.get("stored").and_then(Value::as_u64).unwrap_or_default(),
    })
}

/// The annotations that [`delivered`] reads again.
pub fn delivered_annotations(delivered: &Delivered) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(names::DELIVERED.to_owned(), delivered.count.to_string())]);
    let times = [
        (names::KEYS_CHANGED, delivered.keys_changed),
        (names::CONTENT_CHANGED, delivered.content_changed),
    ];
    for (name, time) in times {
        if let Some(time) = time {
            annotations.insert(name.to_owned(), time.to_string());
        }
    }
    let marks: Map<String, Value> = delivered
        .marks
        .iter()
        .map(|(key, mark)| {
            let mut value = json!({"version": mark.version, "mark": mark.mark});
            if mark.stored > 0 {
                value["stored"] = json!(mark.stored);
            }
            if let Some((version, mark)) = &mark.previous {
                value["previous"] = json!({"version": version, "mark": mark});
            }
            (key.clone(), value)
        })
        .collect();
    annotations.insert(names::KEYS.to_owned(), Value::Object(marks).to_string());
    annotations
}

/// A pod's facts.
pub fn pod(pod: &Pod) -> PodFacts {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
    let controller = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    PodFacts {
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        controller: controller.map(|owner| (owner.kind.clone(), owner.name.clone())),
        leaving: pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed")),
        ready,
        delivered: pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(names::DELIVERED)?.parse().ok()),
        host_network: pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.host_network == Some(true)),
        uses: pod.spec.as_ref().map(|spec| uses(spec, pod)).unwrap_or_default(),
        ip: status
            .filter(|_| phase == Some("Running"))
            .and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
        containers: pod
            .spec
            .as_ref()
            .map(|spec| containers(spec, pod))
            .unwrap_or_default(),
    }
}

fn containers(spec: &PodSpec, pod: &Pod) -> Vec<ContainerFacts> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let running = |name: &str| {
        let status = statuses?.iter().find(|status| status.name == name)?;
        status.state.as_ref()?.running.as_ref()?;
        status.container_id.clone().filter(|id| !id.is_empty())
    };
    let facts = |container: &Container| ContainerFacts {
        id: running(&container.name),
        ports: container
            .ports
            .iter()
            .flatten()
            .filter_map(|port| Some((port.name.clone(), u16::try_from(port.container_port).ok()?)))
            .collect(),
    };
    spec.containers.iter().map(facts).collect()
}

/// Whether a pod template itself uses a Secret.
pub fn template_uses(spec: &PodSpec, secret: &str) -> bool {
    uses(spec, &Pod::default())
        .iter()
        .any(|used| used.secret == secret)
}

fn uses(spec: &PodSpec, pod: &Pod) -> Vec<SecretUse> {
    let mounted: BTreeMap<&str, Vec<&str>> = spec
        .volumes
        .iter()
        .flatten()
        .map(|volume| (volume.name.as_str(), volume_secrets(volume)))
        .collect();
    let status = pod.status.as_ref();
    let init = spec.init_containers.iter().flatten();
    let init_status = status.and_then(|status| status.init_container_statuses.as_ref());
    let main_status = status.and_then(|status| status.container_statuses.as_ref());
    let containers = init
        .map(|container| (container, started(&container.name, init_status, true)))
        .chain(
            spec.containers
                .iter()
                .map(|container| (container, started(&container.name, main_status, false))),
        );
    let mut found = Vec::new();
    let mut seen_volumes = BTreeSet::new();
    for (container, started) in containers {
        for secret in environment_secrets(container) {
            found.push(SecretUse {
                secret: secret.to_owned(),
                volume: false,
                started,
            });
        }
        for mount in container.volume_mounts.iter().flatten() {
            seen_volumes.insert(mount.name.as_str());
            for secret in mounted.get(mount.name.as_str()).into_iter().flatten() {
                found.push(SecretUse {
                    secret: (*secret).to_owned(),
                    volume: true,
                    started,
                });
            }
        }
    }
    // A volume that no container mounts still belongs to the pod, from its start.
    let pod_started = status
        .and_then(|status| status.start_time.as_ref())
        .map(|time| time.0);
    for (volume, secrets) in &mounted {
        if !seen_volumes.contains(volume) {
            let uses = secrets.iter();
            found.extend(uses.map(|secret| SecretUse {
                secret: (*secret).to_owned(),
                volume: true,
                started: pod_started,
            }));
        }
    }
    found
}

fn volume_secrets(volume: &Volume) -> Vec<&str> {
    let direct = volume
        .secret
        .as_ref()
        .and_then(|secret| secret.secret_name.as_deref());
    let projected = volume
        .projected
        .iter()
        .flat_map(|projected| projected.sources.iter().flatten());
    direct
        .into_iter()
        .chain(projected.filter_map(|source| Some(source.secret.as_ref()?.name.as_str())))
        .collect()
}

fn environment_secrets(container: &Container) -> Vec<&str> {
    let single = container.env.iter().flatten().filter_map(|variable| {
        Some(
            variable
                .value_from
                .as_ref()?
                .secret_key_ref
                .as_ref()?
                .name
                .as_str(),
        )
    });
    let whole = container
        .env_from
        .iter()
        .flatten()
        .filter_map(|from| Some(from.secret_ref.as_ref()?.name.as_str()));
    single.chain(whole).collect()
}

/// When a container last started. One that ended does not read anything any more, but an init container
/// that ended has read what it was there for.
fn started(name: &str, statuses: Option<&Vec<ContainerStatus>>, init: bool) -> Option<Timestamp> {
    let state = statuses?
        .iter()
        .find(|status| status.name == name)?
        .state
        .as_ref()?;
    let running = state
        .running
        .as_ref()
        .and_then(|running| running.started_at.as_ref());
    let ended = state
        .terminated
        .as_ref()
        .filter(|_| init)
        .and_then(|ended| ended.started_at.as_ref());
    running.or(ended).map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> PodFacts {
        pod(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn every_way_to_use_a_secret_is_seen() {
        let facts = read(json!({
            "metadata": {"name": "p", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]},
            "spec": {
                "initContainers": [{"name": "i", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "by-env", "key": "k"}}}]}],
                "containers": [{
                    "name": "c",
                    "envFrom": [{"secretRef": {"name": "by-env-from"}}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w"}],
                }],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "by-volume"}},
                    {"name": "w", "projected": {"sources": [{"secret": {"name": "by-projected"}}]}},
                    {"name": "x", "secret": {"secretName": "unmounted"}},
                ],
            },
            "status": {
                "phase": "Running",
                "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True"}],
                "initContainerStatuses": [{"name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "startedAt": "2026-01-01T00:00:01Z"}}}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:02Z"}}}],
            },
        }));
        let seen: Vec<_> = facts
            .uses
            .iter()
            .map(|u| (u.secret.as_str(), u.volume, u.started.map(|t| t.to_string())))
            .collect();
        let at = |second: u8| Some(format!("2026-01-01T00:00:0{second}Z"));
        assert_eq!(
            seen,
            [
                ("by-env", false, at(1)),
                ("by-env-from", false, at(2)),
                ("by-volume", true, at(2)),
                ("by-projected", true, at(2)),
                ("unmounted", true, at(0)),
            ]
        );
        assert!(facts.ready && !facts.leaving);
        assert_eq!((facts.ip, facts.containers.len()), (None, 1));
        assert_eq!(facts.controller, Some(("ReplicaSet".into(), "r".into())));
    }

    #[test]
    fn a_container_that_waits_or_ended_has_not_started() {
        let facts = read(json!({
            "spec": {"containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}]},
            "status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3, "state": {"terminated": {"exitCode": 1, "startedAt": "2026-01-01T00:00:01Z"}}}]},
        }));
        assert_eq!(facts.uses[0].started, None);
    }

    #[test]
    fn a_container_has_an_id_only_while_it_runs() {
        let with = |phase: &str, state: Value| {
            read(json!({
                "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8200}]}]},
                "status": {"phase": phase, "podIP": "10.0.0.7", "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                    "containerID": "containerd://x", "state": state}]},
            }))
        };
        let facts = with(
            "Running",
            json!({"running": {"startedAt": "2026-01-01T00:00:01Z"}}),
        );
        assert_eq!(facts.ip, Some("10.0.0.7".parse().unwrap()));
        assert_eq!(facts.containers[0].id.as_deref(), Some("containerd://x"));
        assert_eq!(facts.containers[0].ports, [(Some("http".to_owned()), 8200)]);
        let ended = with("Running", json!({"terminated": {"exitCode": 1}}));
        assert_eq!(ended.containers[0].id, None);
        assert_eq!(with("Pending", json!({})).ip, None);
    }

    #[test]
    fn what_is_written_on_a_secret_is_read_again() {
        let delivered = Delivered {
            count: 7,
            keys_changed: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            content_changed: Some("2026-01-02T00:00:00Z".parse().unwrap()),
            marks: [(
                "root".to_owned(),
                Mark {
                    version: 3,
                    mark: "ab".to_owned(),
                    previous: Some((2, "cd".to_owned())),
                    stored: 9,
                },
            )]
            .into(),
        };
        assert_eq!(super::delivered(&delivered_annotations(&delivered)), delivered);
    }
}
