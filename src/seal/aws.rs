//! AWS KMS keys as values: how a key is named, which partition and region it lies in, which answers are ours.

use std::{fmt, str::FromStr};

/// A region, `eu-west-1`. Never holds a dot, so it cannot smuggle a domain into a host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(String);

impl Region {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain of AWS services in this region's partition.
    ///
    /// Source: the `dnsSuffix` values of the SDKs' partition metadata.
    pub fn dns_suffix(&self) -> &'static str {
        PARTITIONS
            .iter()
            .find(|p| self.0.starts_with(p.region_prefix))
            .map_or("amazonaws.com", |p| p.dns_suffix)
    }

    /// The domain of dual-stack endpoints in this region's partition.
    pub fn dual_stack_suffix(&self) -> &'static str {
        PARTITIONS
            .iter()
            .find(|p| self.0.starts_with(p.region_prefix))
            .map_or("api.aws", |p| p.dual_stack_suffix)
    }
}

impl FromStr for Region {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let fits = (4..=32).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.ends_with(|c: char| c.is_ascii_digit())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Partition {
    region_prefix: &'static str,
    dns_suffix: &'static str,
    dual_stack_suffix: &'static str,
}

/// Partitions whose domain is not that of the commercial one.
const PARTITIONS: &[Partition] = &[
    Partition {
        region_prefix: "cn-",
        dns_suffix: "amazonaws.com.cn",
        dual_stack_suffix: "api.amazonwebservices.com.cn",
    },
    Partition {
        region_prefix: "us-isob-",
        dns_suffix: "sc2s.sgov.gov",
        dual_stack_suffix: "api.aws.scloud",
    },
    Partition {
        region_prefix: "us-isof-",
        dns_suffix: "csp.hci.ic.gov",
        dual_stack_suffix: "api.aws.hci.ic.gov",
    },
    Partition {
        region_prefix: "us-iso-",
        dns_suffix: "c2s.ic.gov",
        dual_stack_suffix: "api.aws.ic.gov",
    },
    Partition {
        region_prefix: "eu-isoe-",
        dns_suffix: "cloud.adc-e.uk",
        dual_stack_suffix: "api.cloud-aws.adc-e.uk",
    },
    Partition {
        region_prefix: "eusc-",
        dns_suffix: "amazonaws.eu",
        dual_stack_suffix: "api.amazonwebservices.eu",
    },
];

/// The ARN of a key, `arn:aws:kms:eu-west-1:123456789012:key/…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyArn {
    /// `aws`, `aws-cn`, `aws-us-gov`, …
    pub partition: String,
    /// Region of the key, or of this replica of it.
    pub region: Region,
    /// Twelve digits.
    pub account: String,
    /// The key id, `mrk-…` for multi-Region keys.
    pub id: String,
}

impl KeyArn {
    /// Whether both name the same key material: equal, or replicas of one multi-Region key of one account.
    ///
    /// Source: KMS developer guide, multi-Region keys: related keys share the `mrk-` id and the material.
    pub fn same_key(&self, other: &KeyArn) -> bool {
        self.partition == other.partition
            && self.account == other.account
            && self.id == other.id
            && (self.region == other.region || self.id.starts_with("mrk-"))
    }
}

impl FromStr for KeyArn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.parse()? {
            KeyRef::Arn(arn) => Ok(arn),
            _ => Err(()),
        }
    }
}

impl fmt::Display for KeyArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "arn:{}:kms:{}:{}:key/{}",
            self.partition, self.region, self.account, self.id
        )
    }
}

/// How a user names a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRef {
    /// A bare key id.
    Id(String),
    /// A key ARN.
    Arn(KeyArn),
    /// `alias/…`.
    Alias(String),
    /// The ARN of an alias.
    AliasArn {
        /// Partition of the alias.
        partition: String,
        /// Region of the alias.
        region: Region,
        /// Account of the alias.
        account: String,
        /// `alias/…`.
        alias: String,
    },
}

impl KeyRef {
    /// The region that the name itself tells.
    pub fn region(&self) -> Option<&Region> {
        match self {
            KeyRef::Arn(arn) => Some(&arn.region),
            KeyRef::AliasArn { region, .. } => Some(region),
            KeyRef::Id(_) | KeyRef::Alias(_) => None,
        }
    }

    /// The account that the name itself tells.
    pub fn account(&self) -> Option<&str> {
        match self {
            KeyRef::Arn(arn) => Some(&arn.account),
            KeyRef::AliasArn { account, .. } => Some(account),
            KeyRef::Id(_) | KeyRef::Alias(_) => None,
        }
    }

    /// Whether only the KMS can say which key this is.
    pub fn is_alias(&self) -> bool {
        matches!(self, KeyRef::Alias(_) | KeyRef::AliasArn { .. })
    }

    /// Whether `arn` is what this names, as far as the name tells. An alias names no key by itself.
    pub fn names(&self, arn: &KeyArn, region: &Region) -> bool {
        match self {
            KeyRef::Arn(own) => own.same_key(arn),
            KeyRef::Id(id) => *id == arn.id && (arn.region == *region || id.starts_with("mrk-")),
            KeyRef::Alias(_) | KeyRef::AliasArn { .. } => false,
        }
    }
}

impl FromStr for KeyRef {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let id_fits = |id: &str| {
            !id.is_empty() && id.len() <= 256 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let alias_fits = |alias: &str| {
            alias.len() > 6
                && alias.len() <= 256
                && alias
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b":/_-".contains(&b))
        };
        if text.starts_with("alias/") {
            return if alias_fits(text) {
                Ok(KeyRef::Alias(text.to_owned()))
            } else {
                Err(())
            };
        }
        let Some(rest) = text.strip_prefix("arn:") else {
            return if id_fits(text) {
                Ok(KeyRef::Id(text.to_owned()))
            } else {
                Err(())
            };
        };
        let mut parts = rest.splitn(5, ':');
        let (Some(partition), Some("kms"), Some(region), Some(account), Some(resource)) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(());
        };
        let region = region.parse()?;
        let partition_fits = partition == "aws"
            || partition.strip_prefix("aws-").is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
            });
        if !partition_fits || account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        let (partition, account) = (partition.to_owned(), account.to_owned());
        match resource.strip_prefix("key/") {
            Some(id) if id_fits(id) => Ok(KeyRef::Arn(KeyArn {
                partition,
                region,
                account,
                id: id.to_owned(),
            })),
            None if resource.starts_with("alias/") && alias_fits(resource) => Ok(KeyRef::AliasArn {
                partition,
                region,
                account,
                alias: resource.to_owned(),
            }),
            _ => Err(()),
        }
    }
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyRef::Id(text) | KeyRef::Alias(text) => f.write_str(text),
            KeyRef::Arn(arn) => arn.fmt(f),
            KeyRef::AliasArn {
                partition,
                region,
                account,
                alias,
            } => {
                write!(f, "arn:{partition}:kms:{region}:{account}:{alias}")
            }
        }
    }
}

/// An AWS seal as the rest of the program reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsSeal {
    /// The key.
    pub key: KeyRef,
    /// Other keys that may have wrapped what is brought.
    pub former: Vec<KeyRef>,
    /// The account that the key must belong to.
    pub account: Option<String>,
    /// The region asked for, or the ARN's. `None` = the operator's own.
    pub region: Option<Region>,
    /// A custom endpoint, as written.
    pub endpoint: Option<String>,
    /// A role on top of the credentials.
    pub assume_role: Option<AssumeRole>,
    /// Where the credentials come from.
    pub credentials: Credentials,
}

/// A role to assume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AssumeRole {
    /// ARN of the role.
    pub role_arn: String,
    /// External id, the user's own; never set together with the operator's identity.
    pub external_id: Option<String>,
    /// Session name, the user's own.
    pub session_name: Option<String>,
}

/// Where credentials come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// The operator's own identity by the SDK's default chain.
    DefaultChain,
    /// The operator's EKS Pod Identity.
    PodIdentity,
    /// The operator's node role by IMDSv2.
    InstanceMetadata,
    /// A ServiceAccount of the SealConfig's namespace.
    ServiceAccount {
        /// Name of the ServiceAccount.
        name: String,
        /// The role; `None` = its annotation's.
        role_arn: Option<String>,
    },
    /// A Secret of the SealConfig's namespace.
    Secret {
        /// Name of the Secret.
        name: String,
        /// Entry of the access key id.
        access_key_id: String,
        /// Entry of the secret access key.
        secret_access_key: String,
        /// Entry of the session token, which may be absent.
        session_token: String,
    },
}

impl Credentials {
    /// Whether this is the operator's own identity, which needs a grant (security rule S3).
    pub fn is_operators(&self) -> bool {
        match self {
            Credentials::DefaultChain | Credentials::PodIdentity | Credentials::InstanceMetadata => true,
            Credentials::ServiceAccount { .. } | Credentials::Secret { .. } => false,
        }
    }

    /// The word in status.
    pub const fn source(&self) -> &'static str {
        match self {
            Credentials::DefaultChain => "operator",
            Credentials::PodIdentity => "pod-identity",
            Credentials::InstanceMetadata => "instance-metadata",
            Credentials::ServiceAccount { .. } => "irsa",
            Credentials::Secret { .. } => "secret",
        }
    }
}

/// Whether the key that the KMS says it used is one that the seal names (`api.md`, meaning 7).
///
/// `resolved` is what DescribeKey said of the configured name.
pub fn accepts(seal: &AwsSeal, region: &Region, answered: &KeyArn, resolved: Option<&KeyArn>) -> bool {
    if seal
        .account
        .as_ref()
        .is_some_and(|account| *account != answered.account)
    {
        return false;
    }
    resolved.is_some_and(|arn| arn.same_key(answered))
        || seal.key.names(answered, region)
        || seal.former.iter().any(|former| former.names(answered, region))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn seal(key: &str, former: &[&str], account: Option<&str>) -> AwsSeal {
        AwsSeal {
            key: key.parse().unwrap(),
            former: former.iter().map(|f| f.parse().unwrap()).collect(),
            account: account.map(Into::into),
            region: None,
            endpoint: None,
            assume_role: None,
            credentials: Credentials::DefaultChain,
        }
    }

    fn arn(text: &str) -> KeyArn {
        text.parse().unwrap()
    }

    #[test]
    fn every_way_to_name_a_key_is_read_and_printed_again() {
        for text in [
            ARN,
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "mrk-1234abcd12ab34cd56ef1234567890ab",
            "alias/billing-root",
            "arn:aws-cn:kms:cn-north-1:123456789012:alias/a/b",
            "arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/mrk-12",
        ] {
            assert_eq!(text.parse::<KeyRef>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "alias/",
            "arn:aws:kms:eu-west-1:12345678901:key/x",
            "arn:aws:s3:eu-west-1:123456789012:key/x",
            "arn:aws:kms:eu.west.1:123456789012:key/x",
            "arn:aws:kms:eu-west-1:123456789012:key/",
            "arn:aws:kms:eu-west-1:123456789012:grant/x",
            "key with space",
        ] {
            assert!(text.parse::<KeyRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_region_never_holds_a_dot_or_upper_case() {
        for text in ["eu-west-1.evil", "EU-WEST-1", "", "x", "eu-west-1/", "-west-1"] {
            assert!(text.parse::<Region>().is_err(), "{text}");
        }
        assert_eq!(
            "us-gov-west-1".parse::<Region>().unwrap().dns_suffix(),
            "amazonaws.com"
        );
        assert_eq!(
            "cn-north-1".parse::<Region>().unwrap().dns_suffix(),
            "amazonaws.com.cn"
        );
        assert_eq!(
            "us-isob-east-1".parse::<Region>().unwrap().dns_suffix(),
            "sc2s.sgov.gov"
        );
    }

    #[test]
    fn an_answer_is_accepted_only_from_a_key_that_the_seal_names() {
        let region: Region = "eu-west-1".parse().unwrap();
        let ours = arn(ARN);
        let other = arn("arn:aws:kms:eu-west-1:123456789012:key/ffffffff-12ab-34cd-56ef-1234567890ab");
        let foreign_account =
            arn("arn:aws:kms:eu-west-1:999999999999:key/1234abcd-12ab-34cd-56ef-1234567890ab");
        assert!(accepts(&seal(ARN, &[], None), &region, &ours, None));
        assert!(!accepts(&seal(ARN, &[], None), &region, &other, None));
        assert!(!accepts(&seal(ARN, &[], None), &region, &foreign_account, None));
        assert!(accepts(&seal(&ours.id, &[], None), &region, &ours, None));
        assert!(!accepts(
            &seal(&ours.id, &[], Some("999999999999")),
            &region,
            &ours,
            None
        ));
        assert!(!accepts(&seal("alias/a", &[], None), &region, &ours, None));
        assert!(accepts(&seal("alias/a", &[], None), &region, &ours, Some(&ours)));
        assert!(!accepts(
            &seal("alias/a", &[], None),
            &region,
            &other,
            Some(&ours)
        ));
        assert!(accepts(
            &seal("alias/a", &[&other.to_string()], None),
            &region,
            &other,
            Some(&ours)
        ));
    }

    #[test]
    fn replicas_of_a_multi_region_key_are_one_key() {
        let region: Region = "eu-west-1".parse().unwrap();
        let here = arn("arn:aws:kms:eu-west-1:123456789012:key/mrk-1");
        let there = arn("arn:aws:kms:us-east-1:123456789012:key/mrk-1");
        assert!(accepts(
            &seal(&here.to_string(), &[], None),
            &region,
            &there,
            None
        ));
        assert!(accepts(&seal("mrk-1", &[], None), &region, &there, None));
        let elsewhere = arn("arn:aws:kms:us-east-1:123456789012:key/1234");
        assert!(!accepts(&seal("1234", &[], None), &region, &elsewhere, None));
    }
}
