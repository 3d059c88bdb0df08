//! The cluster that a command speaks to, as kubectl would choose it.

use std::path::PathBuf;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Failure;

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
