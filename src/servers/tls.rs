//! Who is trusted: one CA and one name, and nothing of the system's.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::unreachable;
use crate::{api::Reason, seal::Fault};

/// A CA and a name.
pub struct Trust {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
    name: String,
}

impl Trust {
    /// Trusts the certificates of `pem` for that name. `cluster` are the CAs of the cluster itself, which sign more than
    /// servers, so that none of them may be among `pem`.
    ///
    /// # Errors
    /// `TargetNotVerified`.
    pub fn new(pem: &[u8], name: &str, cluster: &[Vec<u8>]) -> Result<Self, Fault> {
        let unreadable =
            || refused("tls.ca holds no PEM certificate that can be read; put the CA of your servers there");
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|_| unreadable())?;
            if cluster.iter().any(|ca| **ca == *certificate) {
                return Err(refused(
                    "tls.ca holds the cluster's own CA, which signs more than your servers; give them a CA of their own",
                ));
            }
            roots.add(certificate).map_err(|_| unreadable())?;
        }
        if roots.is_empty() {
            return Err(unreadable());
        }
        let server = ServerName::try_from(name.to_owned())
            .map_err(|_| refused("the name to verify is not a host name; correct tls.serverName"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| refused("TLS cannot be set up"))?
            .with_root_certificates(roots);
        let mut config = config.with_no_client_auth();
        // Each connection proves itself anew.
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            server,
            name: name.to_owned(),
        })
    }

    /// For the `host` header.
    pub(super) fn host(&self, port: u16) -> String {
        format!("{}:{port}", self.name)
    }

    pub(super) async fn secured(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Fault> {
        let connector = TlsConnector::from(self.config.clone());
        connector
            .connect(self.server.clone(), stream)
            .await
            .map_err(|error| self.failed(&error))
    }

    /// From rustls's errors to ours: the only place that looks inside them.
    fn failed(&self, error: &std::io::Error) -> Fault {
        let found = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let name = &self.name;
        match found {
            None => unreachable("closed the connection during the TLS handshake"),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => refused(&format!(
                "the server's certificate is not for {name}; add that name to its subjectAltName, or correct tls.serverName \
                 or address"
            )),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => refused("the server's certificate was not signed by the CA in tls.ca; correct one of them"),
            Some(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => refused("the server's certificate has expired; renew it"),
            Some(rustls::Error::InvalidCertificate(_)) => {
                refused("the server's certificate is not a valid one for a server; issue another")
            }
            Some(rustls::Error::AlertReceived(_)) => refused(
                "the server refused the TLS handshake; does its listener ask for client certificates?",
            ),
            Some(_) => refused("what listens does not speak TLS; correct port or scheme"),
        }
    }
}

fn refused(message: &str) -> Fault {
    Fault::denied(Reason::TargetNotVerified, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_trusted_by_nobody() {
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for pem in ["", "x", broken] {
            let fault = Trust::new(pem.as_bytes(), "vault.svc", &[]).err().unwrap();
            assert_eq!(fault.reason, Reason::TargetNotVerified, "{pem}");
        }
    }
}
