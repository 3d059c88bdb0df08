//! Where `wrap` and `rewrap` may send a key: only to KMS keys that the caller named (security rule S14). Pure.

use std::fmt;

use super::{
    Failure,
    offline::{self, Offline},
};
use crate::seal::{
    aws::KeyRef,
    model::{Cloud, Seal},
    oci::KeyOcid,
};

/// One KMS key that the key goes to, and the seal that will open it.
#[derive(Debug)]
pub(super) struct Way {
    /// The seal with the caller's identity, aimed at the key that the caller named.
    pub(super) seal: Seal,
    /// What of the file was left aside.
    pub(super) notes: Vec<String>,
}

/// Matches what the caller named with the seals of the file. Without `to` every chosen seal, which the caller must confirm.
///
/// # Errors
/// Misuse: no such seal, no seal that is this key, several that may be.
pub(super) fn destinations(
    seals: &[Seal],
    only: Option<&str>,
    to: &[String],
    trust_file: bool,
) -> Result<Vec<Way>, Failure> {
    let chosen: Vec<&Seal> = seals
        .iter()
        .filter(|seal| only.is_none_or(|name| seal.name == name))
        .collect();
    if chosen.is_empty() {
        return Err(Failure::Misuse(format!(
            "the file has no seal {:?} that wraps; it has {}",
            only.unwrap_or_default(),
            listed(&seals.iter().collect::<Vec<_>>())
        )));
    }
    let way = |seal: &Seal| {
        let Offline { seal: own, notes } = offline::with_own_identity(seal, trust_file);
        Way { seal: own, notes }
    };
    if to.is_empty() {
        return Ok(chosen.into_iter().map(way).collect());
    }
    let mut ways: Vec<Way> = Vec::new();
    for text in to {
        let to = Destination::read(text).ok_or_else(|| {
            Failure::Misuse(format!(
                "--to takes the ARN of a KMS key or alias, or the OCID of an OCI key, not {text:?}"
            ))
        })?;
        let mut way = way(only_match(&chosen, &to)?);
        if ways.iter().any(|other| other.seal.name == way.seal.name) {
            return Err(Failure::Misuse(format!(
                "two --to mean the seal {:?}; leave one out",
                way.seal.name
            )));
        }
        aim(&mut way.seal, to);
        ways.push(way);
    }
    Ok(ways)
}

/// A key as the caller names it: completely, so that no file decides which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Destination {
    /// An ARN of a key or alias.
    Aws(KeyRef),
    /// An OCID.
    Oci(KeyOcid),
}

impl Destination {
    fn read(text: &str) -> Option<Self> {
        if let Ok(key) = text.parse() {
            return Some(Destination::Oci(key));
        }
        match text.parse() {
            Ok(key @ (KeyRef::Arn(_) | KeyRef::AliasArn { .. })) => Some(Destination::Aws(key)),
            _ => None,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Aws(key) => key.fmt(f),
            Destination::Oci(key) => key.fmt(f),
        }
    }
}

/// The one seal that names the key; else the one whose alias may point there.
fn only_match<'s>(chosen: &[&'s Seal], key: &Destination) -> Result<&'s Seal, Failure> {
    let fits = |wanted: Fit| -> Vec<&'s Seal> {
        chosen
            .iter()
            .copied()
            .filter(|seal| fit(seal, key) == Some(wanted))
            .collect()
    };
    let mut candidates = fits(Fit::Named);
    if candidates.is_empty() {
        candidates = fits(Fit::Possible);
    }
    match candidates.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::Misuse(format!(
            "no seal of the file that wraps is {key}; the file has {}",
            listed(chosen)
        ))),
        several => Err(Failure::Misuse(format!(
            "{key} may be any of {}; choose one with --seal",
            listed(several)
        ))),
    }
}

fn listed(seals: &[&Seal]) -> String {
    let names: Vec<_> = seals
        .iter()
        .map(|seal| format!("{:?} ({})", seal.name, seal.cloud.configured_key()))
        .collect();
    names.join(", ")
}

/// Puts the very key that the caller named in the place of what the file says.
fn aim(seal: &mut Seal, to: Destination) {
    match (&mut seal.cloud, to) {
        (Cloud::Aws(aws), Destination::Aws(key)) => {
            aws.region = key.region().cloned();
            aws.account = key.account().map(ToOwned::to_owned);
            aws.former.clear();
            aws.key = key;
        }
        (Cloud::Oci(oci), Destination::Oci(key)) => oci.key = key,
        // A destination fits only a seal of its own cloud.
        (Cloud::Aws(_), Destination::Oci(_)) | (Cloud::Oci(_), Destination::Aws(_)) => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// The seal names this key.
    Named,
    /// The seal names an alias, which may point there: only the KMS knows.
    Possible,
}

/// Whether a seal is, or may be, the key that the caller named.
fn fit(seal: &Seal, to: &Destination) -> Option<Fit> {
    let (aws, to) = match (&seal.cloud, to) {
        (Cloud::Aws(aws), Destination::Aws(to)) => (aws, to),
        (Cloud::Oci(oci), Destination::Oci(to)) => return (oci.key == *to).then_some(Fit::Named),
        (Cloud::Aws(_), Destination::Oci(_)) | (Cloud::Oci(_), Destination::Aws(_)) => return None,
    };
    let region_fits = aws.region.as_ref().is_none_or(|own| Some(own) == to.region());
    let account = aws.account.as_deref().or_else(|| aws.key.account());
    let here = region_fits && account.is_none_or(|own| Some(own) == to.account());
    match (&aws.key, to) {
        (KeyRef::Arn(own), KeyRef::Arn(to)) => own.same_key(to).then_some(Fit::Named),
        (KeyRef::Id(own), KeyRef::Arn(to)) => (here && *own == to.id).then_some(Fit::Named),
        (KeyRef::Alias(own) | KeyRef::AliasArn { alias: own, .. }, KeyRef::AliasArn { alias: to, .. }) => {
            (here && own == to).then_some(Fit::Named)
        }
        (KeyRef::Alias(_) | KeyRef::AliasArn { .. }, KeyRef::Arn(_)) => here.then_some(Fit::Possible),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::offline::tests::seals;

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    const OTHER: &str = "arn:aws:kms:eu-west-1:123456789012:key/ffff0000-12ab-34cd-56ef-1234567890ab";
    const OCID: &str = "ocid1.key.oc1.iad.v.k";
    const ALIAS: &str = "arn:aws:kms:eu-west-1:123456789012:alias/root";

    fn file() -> Vec<Seal> {
        seals(&json!([
            {"name": "arn", "awskms": {"kmsKeyID": KEY, "endpoint": "https://evil.example"}},
            {"name": "id", "awskms": {"kmsKeyID": "9999abcd-12ab-34cd-56ef-1234567890ab", "region": "us-east-1"}},
            {"name": "alias", "awskms": {"kmsKeyID": "alias/root", "region": "eu-west-1"}},
            {"name": "oci", "ocikms": {
                "keyID": OCID,
                "cryptoEndpoint": "https://v-crypto.kms.us-ashburn-1.oraclecloud.com",
                "managementEndpoint": "https://v-management.kms.us-ashburn-1.oraclecloud.com",
            }},
        ]))
    }

    fn names(only: Option<&str>, to: &[&str]) -> Result<Vec<(String, String)>, Failure> {
        let to: Vec<_> = to.iter().map(|&text| text.to_owned()).collect();
        destinations(&file(), only, &to, false).map(|ways| {
            ways.into_iter()
                .map(|way| (way.seal.name, way.seal.cloud.configured_key()))
                .collect()
        })
    }

    #[test]
    fn the_key_goes_where_the_caller_says() {
        let goes = |seal: &str, key: &str| Ok(vec![(seal.to_owned(), key.to_owned())]);
        assert_eq!(names(None, &[KEY]), goes("arn", KEY));
        assert_eq!(names(None, &[ALIAS]), goes("alias", ALIAS));
        assert_eq!(
            names(None, &[OTHER]),
            goes("alias", OTHER),
            "an alias may point anywhere in its region"
        );
        let by_id = "arn:aws:kms:us-east-1:123456789012:key/9999abcd-12ab-34cd-56ef-1234567890ab";
        assert_eq!(names(None, &[by_id]), goes("id", by_id));
        assert_eq!(names(None, &[OCID]), goes("oci", OCID));
        assert_eq!(names(None, &[KEY, ALIAS, OCID]).unwrap().len(), 3);
    }

    #[test]
    fn without_a_destination_every_seal_is_asked_about() {
        assert_eq!(names(None, &[]).unwrap().len(), 4);
        assert_eq!(names(Some("alias"), &[]).unwrap().len(), 1);
    }

    #[test]
    fn what_fits_no_seal_or_several_is_misuse() {
        for (only, to) in [
            (
                None,
                vec!["arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"],
            ),
            (None, vec!["alias/root"]),
            (None, vec!["ocid1.key.oc1.iad.v.other"]),
            (None, vec!["ocid1.vault.oc1.iad.v.k"]),
            (None, vec!["https://evil.example"]),
            (None, vec![KEY, KEY]),
            (Some("id"), vec![KEY]),
            (Some("none"), vec![]),
        ] {
            assert!(
                matches!(names(only, &to), Err(Failure::Misuse(_))),
                "{only:?} {to:?}"
            );
        }
    }

    #[test]
    fn the_files_endpoint_is_not_used() {
        let ways = destinations(&file(), None, &[KEY.to_owned()], false).unwrap();
        let Cloud::Aws(aws) = &ways[0].seal.cloud else {
            panic!("the cloud changed")
        };
        assert_eq!(aws.endpoint, None);
        assert_eq!(ways[0].notes.len(), 1);
    }
}
