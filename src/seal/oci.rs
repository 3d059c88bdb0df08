//! OCI KMS keys as values: OCIDs, realms and regions, and which identity a seal uses.

use std::{fmt, str::FromStr};

mod regions;

/// The longest OCID that is read; the service's own limit is 255 characters.
const MAX_OCID: usize = 255;

/// Whether a text has the form of an OCID, so that it may be sent and shown: `ocid1.<type>.<realm>.[region].<rest>`.
///
/// Source: docs.oracle.com, "Oracle Cloud IDs (OCIDs)".
pub fn is_ocid(text: &str) -> bool {
    text.len() <= MAX_OCID
        && text.starts_with("ocid1.")
        && text.split('.').count() >= 5
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The OCID of a KMS key, `ocid1.key.oc1.eu-frankfurt-1.<vault>.<id>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyOcid {
    text: String,
    realm: String,
    region: String,
}

impl KeyOcid {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The realm, `oc1`.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// The region as the OCID says it: an identifier, or the short code of an old region.
    pub fn region(&self) -> &str {
        &self.region
    }
}

impl FromStr for KeyOcid {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if !is_ocid(text) {
            return Err(());
        }
        let mut parts = text.split('.');
        let (Some("ocid1"), Some("key"), Some(realm), Some(region), Some(rest)) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(());
        };
        let realm_fits = !realm.is_empty()
            && realm
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !realm_fits || !is_region(region) || rest.is_empty() {
            return Err(());
        }
        Ok(Self {
            text: text.to_owned(),
            realm: realm.to_owned(),
            region: region.to_owned(),
        })
    }
}

impl fmt::Display for KeyOcid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The realm in an OCID of any type. Very old OCIDs of the first region name that in its place, and tell no realm.
pub fn realm_of(ocid: &str) -> Option<&str> {
    let is_realm = |text: &&str| {
        text.strip_prefix("oc")
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    ocid.split('.').nth(2).filter(is_realm)
}

/// Whether a text may be a region or the short code of one. It never holds a dot, so it cannot smuggle a domain into a
/// host name.
pub fn is_region(text: &str) -> bool {
    (2..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What the operator knows of realms and regions: the tables, and one region that its environment may add
/// (`OCI_REGION_METADATA`, for dedicated regions that the tables do not know).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Atlas {
    /// The added region.
    pub added: Option<RegionMetadata>,
}

/// A region as `OCI_REGION_METADATA` and the instance's `regionInfo` describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionMetadata {
    /// Short code.
    pub code: String,
    /// Identifier.
    pub region: String,
    /// Realm.
    pub realm: String,
    /// The realm's domain.
    pub domain: String,
}

impl Atlas {
    /// The domain of a realm.
    pub fn domain(&self, realm: &str) -> Option<&str> {
        self.added
            .as_ref()
            .filter(|added| added.realm == realm)
            .map(|added| added.domain.as_str())
            .or_else(|| table(regions::REALMS, realm))
    }

    /// The identifier of a region that is named by itself or by its short code.
    pub fn region<'a>(&'a self, named: &'a str) -> &'a str {
        self.added
            .as_ref()
            .filter(|added| added.code == named)
            .map(|added| added.region.as_str())
            .or_else(|| table(regions::CODES, named))
            .unwrap_or(named)
    }

    /// The realm of a region that is named by its identifier. Unknown ones are taken for `oc1`, as the SDKs do.
    pub fn realm_of_region(&self, region: &str) -> &str {
        self.added
            .as_ref()
            .filter(|added| added.region == region)
            .map(|added| added.realm.as_str())
            .or_else(|| table(regions::OTHER_REALMS, region))
            .unwrap_or("oc1")
    }

    /// Every domain that belongs to a realm, with the realm.
    pub fn domains(&self) -> impl Iterator<Item = (&str, &str)> {
        let added = self
            .added
            .iter()
            .map(|added| (added.realm.as_str(), added.domain.as_str()));
        regions::REALMS.iter().copied().chain(added)
    }
}

fn table(rows: &'static [(&'static str, &'static str)], key: &str) -> Option<&'static str> {
    rows.iter()
        .find(|(left, _)| *left == key)
        .map(|(_, right)| *right)
}

/// An OCI seal as the rest of the program reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciSeal {
    /// The key. OCI decrypts by it, whatever its versions.
    pub key: KeyOcid,
    /// Where it encrypts and decrypts, as written.
    pub crypto_endpoint: String,
    /// Where it is described, as written.
    pub management_endpoint: String,
    /// Who asks.
    pub credentials: Credentials,
}

/// Where an OCI identity comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// The operator's node.
    InstancePrincipal,
    /// The operator's resource principal, from its environment.
    ResourcePrincipal,
    /// A user's API key in a Secret of the SealConfig's namespace.
    ApiKey {
        /// Name of the Secret.
        secret: String,
    },
    /// OKE workload identity of a ServiceAccount of the SealConfig's namespace.
    WorkloadIdentity {
        /// Name of the ServiceAccount.
        service_account: String,
    },
    /// The caller of the command line, who is no tenant: never made from a resource.
    Caller,
}

impl Credentials {
    /// Whether this is the operator's own identity, which needs a grant (security rule S3).
    pub const fn is_operators(&self) -> bool {
        match self {
            Credentials::InstancePrincipal | Credentials::ResourcePrincipal | Credentials::Caller => true,
            Credentials::ApiKey { .. } | Credentials::WorkloadIdentity { .. } => false,
        }
    }

    /// The word in status.
    pub const fn source(&self) -> &'static str {
        match self {
            Credentials::InstancePrincipal => "instance-principal",
            Credentials::ResourcePrincipal => "resource-principal",
            Credentials::ApiKey { .. } => "api-key",
            Credentials::WorkloadIdentity { .. } => "workload-identity",
            Credentials::Caller => "caller",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_its_realm_and_region() {
        for (text, realm, region) in [
            (
                "ocid1.key.oc1.eu-frankfurt-1.bbpnqqmlaaceu.abtheljtexamplekey",
                "oc1",
                "eu-frankfurt-1",
            ),
            (
                "ocid1.key.oc1.iad.afnxza26aag4s.abzwkljsbapzb2nrha5nt3s7",
                "oc1",
                "iad",
            ),
            ("ocid1.key.oc19.eu-madrid-2.v.k", "oc19", "eu-madrid-2"),
            ("ocid1.key.oc1.phx.vectorvault.vectorkey", "oc1", "phx"),
        ] {
            let key: KeyOcid = text.parse().unwrap();
            assert_eq!(
                (key.realm(), key.region(), key.to_string().as_str()),
                (realm, region, text)
            );
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "ocid1.key.oc1",
            "ocid1.key.oc1..v",
            "ocid1.vault.oc1.iad.v.k",
            "ocid2.key.oc1.iad.v.k",
            "ocid1.key.oc1.iad.v/k",
            "ocid1.key.oc1.iad.v\"k",
            "ocid1.key.OC1.iad.v.k",
            "ocid1.key.oc1.Iad.v.k",
            "arn:aws:kms:eu-west-1:123456789012:key/1",
            &format!("ocid1.key.oc1.iad.{}", "a".repeat(250)),
        ] {
            assert!(text.parse::<KeyOcid>().is_err(), "{text}");
        }
    }

    #[test]
    fn realms_and_short_codes_are_known() {
        let atlas = Atlas::default();
        assert_eq!(atlas.domain("oc1"), Some("oraclecloud.com"));
        assert_eq!(atlas.domain("oc19"), Some("oraclecloud.eu"));
        assert_eq!(atlas.domain("oc99"), None);
        assert_eq!(atlas.region("iad"), "us-ashburn-1");
        assert_eq!(atlas.region("eu-frankfurt-1"), "eu-frankfurt-1");
        assert_eq!(atlas.realm_of_region("eu-frankfurt-2"), "oc19");
        assert_eq!(atlas.realm_of_region("us-gov-ashburn-1"), "oc3");
        assert_eq!(atlas.realm_of_region("xx-new-1"), "oc1");
    }

    #[test]
    fn the_realm_is_read_of_any_ocid() {
        assert_eq!(realm_of("ocid1.tenancy.oc1..aaaa"), Some("oc1"));
        assert_eq!(realm_of("ocid1.user.oc19..aaaa"), Some("oc19"));
        for none in [
            "ocid1.tenancy.region1..aaaa",
            "ocid1.tenancy.oc..aaaa",
            "ocid1",
            "",
        ] {
            assert_eq!(realm_of(none), None, "{none}");
        }
    }

    #[test]
    fn the_environment_may_add_a_region() {
        let atlas = Atlas {
            added: Some(RegionMetadata {
                code: "xyz".into(),
                region: "xx-dedicated-1".into(),
                realm: "oc99".into(),
                domain: "oraclecloud99.com".into(),
            }),
        };
        assert_eq!(atlas.domain("oc99"), Some("oraclecloud99.com"));
        assert_eq!(atlas.region("xyz"), "xx-dedicated-1");
        assert_eq!(atlas.realm_of_region("xx-dedicated-1"), "oc99");
        assert_eq!(atlas.domain("oc2"), Some("oraclegovcloud.com"));
    }
}
