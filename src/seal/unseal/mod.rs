//! Unsealing Vault and OpenBao, decided: which pods are looked at and why ([`watch`]), what follows from a server's answers
//! ([`exchange`]), which of them get no share at all ([`verify`]), and what people are told ([`verdict`]).

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};

use super::{
    Fault,
    model::{SourceKind, SourceRef, parse_selector},
    observed::{ContainerFacts, PodFacts},
    store::Class,
};
use crate::api::{Armor, CaSource, UnsealAddressType, UnsealPolicy, UnsealProduct, UnsealScheme, UnsealSpec};

pub mod exchange;
pub mod initialize;
pub mod rotate;
pub mod share;
pub mod verdict;
pub mod verify;
pub mod watch;

pub use initialize::Initialize;
pub use watch::{PodRecord, Said};

/// The ConfigMap in which every namespace holds the cluster's own CA: it signs far more than the servers to unseal.
pub const CLUSTER_CA: &str = "kube-root-ca.crt";

/// `spec.unseal`, parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Unseal {
    /// Which server it is.
    pub product: UnsealProduct,
    /// Which pods; never empty.
    pub selector: Selector,
    /// The headless Service whose names the pods have; `None` = they are known by their IP only.
    pub service: Option<String>,
    /// How it is spoken to.
    pub transport: Transport,
    /// Where it listens.
    pub port: Port,
    /// What becomes of a server that was sealed while its container ran.
    pub policy: UnsealPolicy,
    /// How servers that were never initialised are; `None` = they never are.
    pub initialize: Option<Initialize>,
    /// Whether a server that is between two seals is migrated.
    pub migrate: bool,
}

/// What a share is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareKind {
    /// The unseal key of a Shamir seal.
    Unseal,
    /// The recovery key of a native auto seal.
    Recovery,
}

impl ShareKind {
    /// The class of the keys that are such shares.
    pub fn class(self) -> Class {
        match self {
            ShareKind::Unseal => Class::UnsealShare,
            ShareKind::Recovery => Class::RecoveryShare,
        }
    }

    /// The purpose, as the spec writes it.
    pub fn word(self) -> &'static str {
        match self {
            ShareKind::Unseal => "unseal-share",
            ShareKind::Recovery => "recovery-share",
        }
    }
}

/// How a server is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In the clear.
    Plain,
    /// Over TLS.
    Tls {
        /// The only CA that is trusted.
        ca: SourceRef,
        /// The name in the certificate; `None` = the pod's name under its Service.
        name: Option<String>,
    },
}

/// A port by number or by its name in the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

/// A server that runs: where it is, and which container it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pod's address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The container's id.
    pub container: String,
}

impl Unseal {
    /// Parses it.
    ///
    /// # Errors
    /// `InvalidSpec`: what the schema could not refuse, or what reached us around it.
    pub fn parse(spec: &UnsealSpec) -> Result<Self, Fault> {
        let address = spec.address.as_ref();
        let by_dns = address.is_some_and(|address| address.type_ == UnsealAddressType::PodDNS);
        let service = address.and_then(|address| address.service_name.clone());
        if by_dns != service.is_some() {
            return Err(Fault::invalid_spec(
                "serviceName goes with address.type PodDNS, and PodDNS needs it",
            ));
        }
        let transport = match (spec.scheme, &spec.tls) {
            (UnsealScheme::Http, None) => Transport::Plain,
            (UnsealScheme::Http, Some(_)) => {
                return Err(Fault::invalid_spec("http goes without tls; take one of them out"));
            }
            (UnsealScheme::Https, None) => {
                return Err(Fault::invalid_spec(
                    "https needs tls.ca, the CA that signed the servers' certificates",
                ));
            }
            (UnsealScheme::Https, Some(tls)) => {
                if tls.server_name.is_none() && service.is_none() {
                    return Err(Fault::invalid_spec(
                        "https needs a name to verify: set tls.serverName, or address.type PodDNS",
                    ));
                }
                Transport::Tls {
                    ca: ca(&tls.ca)?,
                    name: tls.server_name.clone(),
                }
            }
        };
        let port = match &spec.port {
            IntOrString::Int(number) => u16::try_from(*number)
                .ok()
                .filter(|port| *port > 0)
                .map(Port::Number),
            IntOrString::String(name) => Some(Port::Name(name.clone())).filter(|_| !name.is_empty()),
        };
        let initialize = spec.initialize.as_ref().map(Initialize::parse).transpose()?;
        if initialize.is_some() && transport == Transport::Plain {
            return Err(Fault::invalid_spec(
                "initialize needs scheme: https, for what a server answers to it opens everything",
            ));
        }
        Ok(Self {
            product: spec.product,
            selector: parse_selector(&spec.pod_selector)?,
            service,
            transport,
            port: port.ok_or_else(|| {
                Fault::invalid_spec("port is a number from 1 to 65535, or the name of a container's port")
            })?,
            policy: spec.policy,
            initialize,
            migrate: spec.migrate,
        })
    }

    /// Where the CA lies.
    pub fn ca(&self) -> Option<&SourceRef> {
        match &self.transport {
            Transport::Plain => None,
            Transport::Tls { ca, .. } => Some(ca),
        }
    }

    /// Whether a pod is selected, and not about to go.
    pub fn selects(&self, pod: &PodFacts) -> bool {
        !pod.leaving && self.selector.matches(&pod.labels)
    }

    /// Where a pod's server is, once it runs. With several containers it is the one whose spec tells the port, else the
    /// first.
    pub fn place(&self, pod: &PodFacts) -> Option<Place> {
        if pod.leaving {
            return None;
        }
        let told = |container: &&ContainerFacts| container.ports.iter().any(|port| self.is_port(port));
        let container = pod.containers.iter().find(told);
        let port = match &self.port {
            Port::Number(number) => *number,
            Port::Name(_) => container?.ports.iter().find(|port| self.is_port(port))?.1,
        };
        Some(Place {
            ip: pod.ip?,
            port,
            container: container.or(pod.containers.first())?.id.clone()?,
        })
    }

    fn is_port(&self, (name, number): &(Option<String>, u16)) -> bool {
        match &self.port {
            Port::Number(port) => port == number,
            Port::Name(port) => name.as_ref() == Some(port),
        }
    }

    /// The name that a pod's certificate must carry. The pod is connected to at its IP all the same, which the apiserver
    /// tells: a name server has no say in where shares go.
    pub fn tls_name(&self, pod: &str, namespace: &str) -> Option<String> {
        match &self.transport {
            Transport::Tls { name: Some(name), .. } => Some(name.clone()),
            _ => self
                .service
                .as_ref()
                .map(|service| format!("{pod}.{service}.{namespace}.svc")),
        }
    }

    /// The label with which the server tells that it is sealed. It can lie, so it is only a reason to ask.
    pub fn sealed_label(&self) -> &'static str {
        match self.product {
            UnsealProduct::Vault => "vault-sealed",
            UnsealProduct::OpenBao => "openbao-sealed",
        }
    }
}

fn ca(source: &CaSource) -> Result<SourceRef, Fault> {
    let (kind, entry) = match (&source.secret_key_ref, &source.config_map_key_ref) {
        (Some(entry), None) => (SourceKind::Secret, entry),
        (None, Some(entry)) => (SourceKind::ConfigMap, entry),
        _ => {
            return Err(Fault::invalid_spec(
                "tls.ca takes exactly one of secretKeyRef, configMapKeyRef",
            ));
        }
    };
    if entry.name == CLUSTER_CA {
        return Err(Fault::invalid_spec(
            "tls.ca names the cluster's own CA, which signs more than your servers; give them a CA of their own",
        ));
    }
    Ok(SourceRef {
        kind,
        name: entry.name.clone(),
        key: entry.key.clone(),
        armor: Armor::None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Reason;

    pub(crate) fn spec() -> Value {
        json!({
            "product": "vault", "podSelector": {"matchLabels": {"app": "vault"}},
            "tls": {"ca": {"secretKeyRef": {"name": "ca", "key": "ca.crt"}}, "serverName": "vault.svc"},
        })
    }

    pub(crate) fn parsed(patch: &[(&str, Value)]) -> Result<Unseal, Fault> {
        let mut spec = spec();
        for (field, value) in patch {
            if value.is_null() {
                spec.as_object_mut().unwrap().remove(*field);
            } else {
                spec[*field] = value.clone();
            }
        }
        Unseal::parse(&serde_json::from_value(spec).unwrap())
    }

    pub(crate) fn pod() -> PodFacts {
        PodFacts {
            name: "vault-0".into(),
            uid: "u".into(),
            labels: [("app".to_owned(), "vault".to_owned())].into(),
            ip: Some("10.0.0.7".parse().unwrap()),
            containers: vec![
                ContainerFacts {
                    id: Some("sidecar".into()),
                    ports: vec![(None, 9000)],
                },
                ContainerFacts {
                    id: Some("c1".into()),
                    ports: vec![(Some("https".into()), 8200)],
                },
            ],
            ..PodFacts::default()
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let ca = json!({"configMapKeyRef": {"name": CLUSTER_CA, "key": "ca.crt"}});
        for (why, patch) in [
            ("https without a CA", vec![("tls", Value::Null)]),
            ("http with a CA", vec![("scheme", json!("http"))]),
            (
                "https without a name",
                vec![("tls", json!({"ca": spec()["tls"]["ca"]}))],
            ),
            (
                "the cluster's CA",
                vec![("tls", json!({"ca": ca, "serverName": "x"}))],
            ),
            (
                "PodDNS without a Service",
                vec![("address", json!({"type": "PodDNS"}))],
            ),
            (
                "a Service without PodDNS",
                vec![("address", json!({"type": "PodIP", "serviceName": "s"}))],
            ),
            (
                "initialize over http",
                vec![
                    ("scheme", json!("http")),
                    ("tls", Value::Null),
                    ("initialize", json!({"shamir": {"shares": 1, "threshold": 1}})),
                ],
            ),
            ("no port", vec![("port", json!(0))]),
            ("no pods", vec![("podSelector", json!({}))]),
        ] {
            let fault = parsed(&patch).expect_err(why);
            assert_eq!(fault.reason, Reason::InvalidSpec, "{why}");
        }
    }

    #[test]
    fn the_servers_container_is_the_one_that_has_the_port() {
        for port in [json!(8200), json!("https")] {
            let place = parsed(&[("port", port)]).unwrap().place(&pod()).unwrap();
            assert_eq!((place.container.as_str(), place.port), ("c1", 8200));
        }
        let unnamed = parsed(&[("port", json!(1234))]).unwrap().place(&pod()).unwrap();
        assert_eq!(
            unnamed.container, "sidecar",
            "the first, when none tells the port"
        );
        assert_eq!(parsed(&[("port", json!("none"))]).unwrap().place(&pod()), None);
        let mut waiting = pod();
        waiting.containers[1].id = None;
        assert_eq!(parsed(&[]).unwrap().place(&waiting), None);
        for hide in [
            |pod: &mut PodFacts| pod.ip = None,
            |pod: &mut PodFacts| pod.leaving = true,
        ] {
            let mut pod = pod();
            hide(&mut pod);
            assert_eq!(parsed(&[]).unwrap().place(&pod), None);
        }
    }

    #[test]
    fn the_name_is_the_one_that_was_set_or_that_of_the_pod() {
        let dns = json!({"type": "PodDNS", "serviceName": "internal"});
        let by_dns = parsed(&[
            ("address", dns.clone()),
            ("tls", json!({"ca": spec()["tls"]["ca"]})),
        ])
        .unwrap();
        assert_eq!(
            by_dns.tls_name("vault-0", "n").as_deref(),
            Some("vault-0.internal.n.svc")
        );
        let both = parsed(&[("address", dns)]).unwrap();
        assert_eq!(both.tls_name("vault-0", "n").as_deref(), Some("vault.svc"));
    }
}
