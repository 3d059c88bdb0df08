//! The cluster that a command speaks to, as kubectl would choose it.

use std::path::PathBuf;

use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Failure;
use crate::{
    api::{Reason, SealConfig},
    kube_ext::{bounded, cluster::read_fault},
    seal::Fault,
};

/// Which cluster.
#[derive(Debug, Default, clap::Args)]
pub struct ClusterArgs {
    /// The kubeconfig to read. Default: KUBECONFIG, ~/.kube/config, else the pod's own ServiceAccount
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig. Default: its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// The cluster, and the namespace that its context means.
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
}

pub(super) async fn connect(args: &ClusterArgs) -> Result<Cluster, Failure> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let unusable = |what: &str| {
        Failure::Misuse(format!(
            "no cluster to speak to: {what}; pass --kubeconfig and --context, set KUBECONFIG, or name a file with -f"
        ))
    };
    let config = match (&args.kubeconfig, &args.context) {
        (Some(path), _) => {
            let read = Kubeconfig::read_from(path)
                .map_err(|_| unusable(&format!("{} is no kubeconfig that can be read", path.display())))?;
            Config::from_custom_kubeconfig(read, &options)
                .await
                .map_err(|_| unusable("the kubeconfig has no such context"))?
        }
        (None, Some(_)) => Config::from_kubeconfig(&options)
            .await
            .map_err(|_| unusable("the kubeconfig has no such context"))?,
        (None, None) => Config::infer()
            .await
            .map_err(|_| unusable("there is neither a kubeconfig nor a pod's ServiceAccount"))?,
    };
    let namespace = config.default_namespace.clone();
    let client = Client::try_from(config)
        .map_err(|_| unusable("its certificates or proxy settings cannot be used"))?;
    Ok(Cluster { client, namespace })
}

/// The SealConfig of that name.
///
/// # Errors
/// Misuse when there is none; what kept the apiserver from answering.
pub(super) async fn seal_config(client: &Client, namespace: &str, name: &str) -> Result<SealConfig, Failure> {
    let api: Api<SealConfig> = Api::namespaced(client.clone(), namespace);
    let found = bounded(api.get_opt(name)).await;
    let found = found.map_err(|error| {
        yours(read_fault(
            &error,
            "get sealconfigs",
            namespace,
            Reason::SourceMissing,
        ))
    })?;
    found.ok_or_else(|| {
        Failure::Misuse(format!(
            "there is no SealConfig {name} in namespace {namespace}; see: kubectl get sealconfigs -A"
        ))
    })
}

/// The same fault, told of the caller: the rights of a command are not the operator's.
pub(super) fn yours(mut fault: Fault) -> Fault {
    if let Some(rest) = fault.message.strip_prefix("the operator may not ") {
        let rest = rest.replacen("grant it that", "let yourself be granted that", 1);
        fault.message = format!("you may not {rest}");
    } else if let Some(rest) = fault.message.strip_suffix("; it is tried again") {
        fault.message = format!("{rest}; try again");
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_of_the_caller() {
        let denied = Fault::denied(
            Reason::SourceMissing,
            "the operator may not get secrets in namespace n; grant it that in a Role of that namespace",
        );
        assert_eq!(
            yours(denied).message,
            "you may not get secrets in namespace n; let yourself be granted that in a Role of that namespace"
        );
        let silent = Fault::transient(
            Reason::SourceMissing,
            "the apiserver does not answer; it is tried again",
        );
        assert_eq!(yours(silent).message, "the apiserver does not answer; try again");
    }
}
