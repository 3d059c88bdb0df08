//! Rolls the workloads of pods that run with old keys, where they asked for it (security rule S16).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::{Pod, PodTemplateSpec},
};
use kube::{
    Api, Client, ResourceExt,
    api::{EvictParams, Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::context::Context;
use crate::{
    api::Reason,
    kube_ext::{FIELD_MANAGER, bounded, cluster::read_fault, facts, names},
    seal::{
        Fault,
        model::{Model, Target},
        observed::{Delivered, Observed, PodFacts},
        outcome::{Outcomes, TargetOutcome},
        pods::pods,
        rollout::{Restart, Rollout, WorkloadFacts, behind, decide},
    },
};

/// Looks at the pods of every target that asks for restarts.
pub async fn restart(context: &Context, model: &Model, observed: &Observed, outcomes: &mut Outcomes) {
    for target in model.targets.iter().filter(|target| target.restart) {
        if matches!(outcomes.targets.get(&target.name), Some(TargetOutcome::Failed(_))) {
            continue;
        }
        let Some(secret) = observed.secrets.get(&target.secret) else {
            continue;
        };
        if secret.owner_uid.as_ref() != Some(&model.id.uid) {
            continue;
        }
        if let Err(fault) = restart_target(context, model, target, &secret.delivered, observed).await {
            outcomes.restarts.insert(target.name.clone(), fault);
        }
    }
}

async fn restart_target(
    context: &Context,
    model: &Model,
    target: &Target,
    delivered: &Delivered,
    observed: &Observed,
) -> Result<(), Fault> {
    let using = pods(target, &observed.pods, delivered).using();
    // Nothing is asked of the apiserver while no pod is behind: this runs at every reconcile.
    if behind(&using, &target.secret, delivered).is_empty() {
        return Ok(());
    }
    let mut workloads: BTreeMap<(String, String), Vec<&PodFacts>> = BTreeMap::new();
    for pod in using {
        if let Some(owner) = &pod.controller {
            workloads.entry(owner.clone()).or_default().push(pod);
        }
    }
    let mut merged: BTreeMap<(String, String), (Workload, Vec<&PodFacts>)> = BTreeMap::new();
    for ((kind, name), pods) in workloads {
        let Some(workload) =
            Workload::find(&context.client, &model.id.namespace, &kind, &name, &target.secret).await?
        else {
            continue;
        };
        let key = (workload.kind.to_owned(), workload.name.clone());
        merged
            .entry(key)
            .or_insert_with(|| (workload, Vec::new()))
            .1
            .extend(pods);
    }
    let mut blocked = None;
    for (mut workload, pods) in merged.into_values() {
        let again = |facts: &WorkloadFacts| decide(facts, &pods, &target.secret, delivered, observed.now);
        let mut decision = again(&workload.facts);
        if decision == Restart::Annotate {
            workload
                .annotate(
                    &context.client,
                    &model.id.namespace,
                    delivered.count,
                    observed.now,
                )
                .await?;
            context.events.restarted(model, &workload.facts.name).await;
            // Nothing that is watched has changed: what follows under OnDelete is decided at once.
            workload.facts.delivered = Some(delivered.count);
            decision = again(&workload.facts);
        }
        match decision {
            Restart::Nothing | Restart::NotAsked | Restart::Annotate => {}
            Restart::Evict(pod) => evict(&context.client, &model.id.namespace, &pod).await?,
            Restart::Blocked(fault) => blocked = Some(fault),
        }
    }
    blocked.map_or(Ok(()), Err)
}

async fn evict(client: &Client, namespace: &str, pod: &str) -> Result<(), Fault> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match bounded(api.evict(pod, &EvictParams::default())).await {
        Ok(_) => {
            tracing::info!(
                namespace,
                pod,
                "evicted, so that it starts with the keys delivered now"
            );
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 429 => Err(Fault::denied(
            Reason::RestartBlocked,
            format!("a PodDisruptionBudget does not let pod {pod} go yet; it is asked again"),
        )),
        Err(error) => Err(read_fault(
            &error,
            "create pods/eviction",
            namespace,
            Reason::RestartBlocked,
        )),
    }
}

struct Workload {
    kind: &'static str,
    name: String,
    facts: WorkloadFacts,
}

impl Workload {
    /// The workload behind a pod's controller; `None` when it is of a kind that is never restarted.
    async fn find(
        client: &Client,
        namespace: &str,
        kind: &str,
        name: &str,
        secret: &str,
    ) -> Result<Option<Self>, Fault> {
        match kind {
            "ReplicaSet" => {
                let Some(set) = get::<ReplicaSet>(client, namespace, name, "get replicasets").await? else {
                    return Ok(None);
                };
                let owner = set
                    .owner_references()
                    .iter()
                    .find(|owner| owner.controller == Some(true));
                match owner
                    .filter(|owner| owner.kind == "Deployment")
                    .map(|owner| owner.name.clone())
                {
                    Some(name) => Ok(get::<Deployment>(client, namespace, &name, "get deployments")
                        .await?
                        .map(|deployment| Self::deployment(&deployment, secret))),
                    None => Ok(None),
                }
            }
            "StatefulSet" => Ok(get::<StatefulSet>(client, namespace, name, "get statefulsets")
                .await?
                .map(|set| Self::stateful_set(&set, secret))),
            "DaemonSet" => Ok(get::<DaemonSet>(client, namespace, name, "get daemonsets")
                .await?
                .map(|set| Self::daemon_set(&set, secret))),
            _ => Ok(None),
        }
    }

    fn new(
        kind: &'static str,
        object: &impl ResourceExt,
        template: Option<&PodTemplateSpec>,
        secret: &str,
        rollout: Rollout,
        on_delete: bool,
        replicas: i32,
    ) -> Self {
        let name = object.name_any();
        let restarts = object
            .annotations()
            .get(names::RESTARTS)
            .map(String::as_str)
            .unwrap_or_default();
        let counter = template
            .and_then(|template| {
                template
                    .metadata
                    .as_ref()?
                    .annotations
                    .as_ref()?
                    .get(names::DELIVERED)
            })
            .and_then(|text| text.parse().ok());
        let facts = WorkloadFacts {
            name: format!("{kind} {name}"),
            allowed: object
                .annotations()
                .get(names::RESTART)
                .is_some_and(|value| value == names::ALLOWED),
            uses_secret: template
                .and_then(|template| template.spec.as_ref())
                .is_some_and(|spec| facts::template_uses(spec, secret)),
            delivered: counter,
            restarts: restarts.split(',').filter_map(|text| text.parse().ok()).collect(),
            rollout,
            on_delete,
            replicas: usize::try_from(replicas).unwrap_or_default(),
        };
        Self { kind, name, facts }
    }

    fn deployment(object: &Deployment, secret: &str) -> Self {
        let spec = &object.spec;
        let status = object.status.as_ref();
        let wanted = spec.replicas.unwrap_or(1);
        let seen = status.and_then(|status| status.observed_generation) >= object.metadata.generation;
        let updated = status.and_then(|status| status.updated_replicas).unwrap_or(0);
        let available = status.and_then(|status| status.available_replicas).unwrap_or(0);
        let all = status.and_then(|status| status.replicas).unwrap_or(0);
        let gave_up = status
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|conditions| {
                conditions.iter().any(|condition| {
                    condition.type_.as_deref() == Some("Progressing")
                        && condition.status.as_deref() == Some("False")
                })
            });
        let rollout = if seen && gave_up {
            Rollout::Stuck("its last rollout failed; mend it, then the restart follows")
        } else if seen && updated == wanted && available >= wanted && all == updated {
            Rollout::Complete
        } else if spec.paused == Some(true) {
            Rollout::Stuck("spec.paused is true; resume it, then the restart follows")
        } else {
            Rollout::Running
        };
        Self::new(
            "Deployment",
            object,
            Some(&spec.template),
            secret,
            rollout,
            false,
            wanted,
        )
    }

    fn stateful_set(object: &StatefulSet, secret: &str) -> Self {
        let spec = &object.spec;
        let status = object.status.as_ref();
        let wanted = spec.replicas.unwrap_or(1);
        let seen = status.and_then(|status| status.observed_generation) >= object.metadata.generation;
        let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
        let same = status.is_none_or(|status| status.current_revision == status.update_revision);
        let strategy = spec.update_strategy.as_ref();
        let partition = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.partition);
        let rollout = if seen && same && ready >= wanted {
            Rollout::Complete
        } else if partition.is_some_and(|partition| partition > 0) {
            Rollout::Stuck(
                "the partition of its updateStrategy keeps pods from the new template; set it to 0, then the restart follows",
            )
        } else {
            Rollout::Running
        };
        let on_delete = strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete");
        Self::new(
            "StatefulSet",
            object,
            Some(&spec.template),
            secret,
            rollout,
            on_delete,
            wanted,
        )
    }

    fn daemon_set(object: &DaemonSet, secret: &str) -> Self {
        let spec = &object.spec;
        let status = object.status.as_ref();
        let seen = status.and_then(|status| status.observed_generation) >= object.metadata.generation;
        let wanted = status.map_or(0, |status| status.desired_number_scheduled);
        let ready = status.map_or(0, |status| status.number_ready);
        let updated = status
            .and_then(|status| status.updated_number_scheduled)
            .unwrap_or(0);
        let complete = seen && ready >= wanted && updated >= wanted;
        let strategy = spec
            .update_strategy
            .as_ref()
            .and_then(|strategy| strategy.type_.as_deref());
        let on_delete = strategy == Some("OnDelete");
        let rollout = if complete {
            Rollout::Complete
        } else {
            Rollout::Running
        };
        Self::new(
            "DaemonSet",
            object,
            Some(&spec.template),
            secret,
            rollout,
            on_delete,
            wanted,
        )
    }

    async fn annotate(
        &self,
        client: &Client,
        namespace: &str,
        counter: u64,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let mut restarts = self.facts.restarts.clone();
        restarts.push(now);
        let keep = restarts
            .len()
            .saturating_sub(crate::seal::rollout::RESTARTS_A_DAY);
        let restarts: Vec<String> = restarts[keep..].iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": {"annotations": {names::RESTARTS: restarts.join(",")}},
            "spec": {"template": {"metadata": {"annotations": {names::DELIVERED: counter.to_string()}}}},
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(&patch);
        let done = match self.kind {
            "Deployment" => patched::<Deployment>(client, namespace, &self.name, &params, &patch).await,
            "StatefulSet" => patched::<StatefulSet>(client, namespace, &self.name, &params, &patch).await,
            _ => patched::<DaemonSet>(client, namespace, &self.name, &params, &patch).await,
        };
        let right = format!("patch {}s", self.kind.to_lowercase());
        done.map_err(|error| read_fault(&error, &right, namespace, Reason::RestartBlocked))?;
        tracing::info!(
            namespace,
            workload = self.facts.name.as_str(),
            counter,
            "restarted, because keys changed"
        );
        Ok(())
    }
}

async fn get<K>(client: &Client, namespace: &str, name: &str, right: &str) -> Result<Option<K>, Fault>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let found = bounded(api.get_opt(name)).await;
    found.map_err(|error| read_fault(&error, right, namespace, Reason::RestartBlocked))
}

async fn patched<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    params: &PatchParams,
    patch: &Patch<&serde_json::Value>,
) -> kube::Result<()>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    bounded(api.patch(name, params, patch)).await.map(drop)
}
