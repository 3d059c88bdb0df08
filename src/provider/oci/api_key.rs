//! A user's API key: data of a tenant's Secret, or of the caller's configuration.
//!
//! Nothing here reads a file or the environment, so no text of a tenant can name one (security rule S9).

use zeroize::Zeroizing;

use super::{config_file, pem, session::Session};
use crate::{
    api::Reason,
    provider::SecretEntries,
    seal::{
        Fault,
        endpoint::printable,
        oci::{is_ocid, realm_of},
    },
};

/// The entry of the private key.
const KEY_ENTRY: &str = "key.pem";

/// What makes an API key.
pub(super) struct Parts<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) tenancy: Option<&'a str>,
    pub(super) fingerprint: Option<&'a str>,
    pub(super) pem: &'a [u8],
    pub(super) pass_phrase: Option<&'a [u8]>,
}

fn missing(message: String) -> Fault {
    Fault::denied(Reason::CredentialsMissing, message)
}

pub(super) fn no_secret(name: &str) -> Fault {
    missing(format!(
        "there is no Secret {} with an OCI API key in this namespace; create it, or correct credentials.apiKey.secretRef",
        printable(name)
    ))
}

/// Reads an API key from the entries of a Secret: single entries, or a configuration file among them.
pub(super) fn of_secret(name: &str, entries: &SecretEntries) -> Result<Session, Fault> {
    let shown = printable(name);
    let place = |part: &str| format!("Secret {shown}, {part}");
    let text = |entry: &str| -> Result<Option<Zeroizing<String>>, Fault> {
        let Some(bytes) = entries.get(entry) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|_| missing(format!("{} is no text", place(&format!("entry {entry}")))))?;
        Ok((!text.trim().is_empty()).then(|| Zeroizing::new(text.trim().to_owned())))
    };
    let (user, tenancy, fingerprint) = (text("user")?, text("tenancy")?, text("fingerprint")?);
    // A pass phrase may begin or end with a blank; only the line end that editors leave is taken off.
    let phrase = entries.get("pass_phrase").map(|phrase| {
        let end = phrase
            .iter()
            .rposition(|b| !b"\r\n".contains(b))
            .map_or(0, |last| last + 1);
        Zeroizing::new(phrase[..end].to_vec())
    });
    let phrase = phrase.filter(|phrase| !phrase.is_empty());
    let profile = match entries.get("config") {
        None => None,
        Some(config) => {
            let config = std::str::from_utf8(config)
                .map_err(|_| missing(format!("{} is no text", place("entry config"))))?;
            let name = text("profile")?;
            let profile = config_file::profile(config, name.as_ref().map(|name| name.as_str()))
                .map_err(|error| missing(format!("{}: {error}", place("entry config"))))?;
            if profile.security_token_file.is_some() {
                return Err(missing(format!(
                    "{} names a security_token_file, which belongs to `oci session authenticate` and ends within the hour; bring \
                     an API key",
                    place("entry config")
                )));
            }
            Some(profile)
        }
    };
    let profile = profile.as_ref();
    // A path of the machine where the file was written: its last part is the name of the entry, and nothing is opened.
    let named = profile
        .and_then(|profile| profile.key_file.as_deref())
        .and_then(|path| path.rsplit(['/', '\\']).next())
        .filter(|entry| entries.contains_key(*entry));
    let entry = named.unwrap_or(KEY_ENTRY);
    let Some(pem) = entries.get(entry) else {
        return Err(missing(format!(
            "Secret {shown} has no entry {KEY_ENTRY} with the private key{}; add it",
            if profile.is_some() {
                ", nor one with the name of the file that key_file names"
            } else {
                ""
            }
        )));
    };
    let of_profile = |value: fn(&config_file::Profile) -> Option<&str>| profile.and_then(value);
    session(
        &Parts {
            user: of_profile(|p| p.user.as_deref()).or(user.as_ref().map(|text| text.as_str())),
            tenancy: of_profile(|p| p.tenancy.as_deref()).or(tenancy.as_ref().map(|text| text.as_str())),
            fingerprint: of_profile(|p| p.fingerprint.as_deref())
                .or(fingerprint.as_ref().map(|text| text.as_str())),
            pem,
            pass_phrase: profile
                .and_then(|profile| profile.pass_phrase.as_ref())
                .map(|phrase| phrase.as_bytes())
                .or(phrase.as_ref().map(|phrase| phrase.as_slice())),
        },
        &place,
    )
}

/// A session of an API key. `place` names the part that is at fault.
pub(super) fn session(parts: &Parts<'_>, place: &dyn Fn(&str) -> String) -> Result<Session, Fault> {
    let ocid = |what: &'static str, value: Option<&str>| -> Result<String, Fault> {
        let value = value.ok_or_else(|| missing(format!("{} is missing; add it", place(what))))?;
        if is_ocid(value) && value.starts_with(&format!("ocid1.{what}.")) {
            Ok(value.to_owned())
        } else {
            // It would go out in clear in the signature header, whatever it is (security rule S1).
            Err(missing(format!(
                "{} is no OCID of a {what} (ocid1.{what}.…); it was not sent",
                place(what)
            )))
        }
    };
    let user = ocid("user", parts.user)?;
    let tenancy = ocid("tenancy", parts.tenancy)?;
    let key = pem::private_key(parts.pem, parts.pass_phrase)
        .map_err(|error| missing(format!("{}: {error}", place("private key"))))?;
    let own = pem::fingerprint(&key).ok_or_else(|| {
        missing(format!(
            "{} has no public half; bring it again",
            place("private key")
        ))
    })?;
    let used = match parts.fingerprint {
        None => own.clone(),
        Some(text) => {
            let text = text.to_ascii_lowercase();
            let fits = text.split(':').count() == 16
                && text
                    .split(':')
                    .all(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
            if !fits {
                return Err(missing(format!(
                    "{} is not 16 pairs of hexadecimal digits with colons; it was not sent",
                    place("fingerprint")
                )));
            }
            text
        }
    };
    Ok(Session {
        key_id: format!("{tenancy}/{user}/{used}"),
        key,
        expires: None,
        realm: realm_of(&tenancy).map(ToOwned::to_owned),
        principal: Some(user),
        other_fingerprint: (used != own).then_some((used, own)),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use data_encoding::BASE64;

    use super::*;

    pub(in super::super) const USER: &str = "ocid1.user.oc1..aaaaaaaavectoruser";
    pub(in super::super) const TENANCY: &str = "ocid1.tenancy.oc1..aaaaaaaavectortenancy";
    const FINGERPRINT: &str = "d2:ef:2a:c3:ba:73:c7:88:e7:8d:ec:5d:ad:eb:85:89";

    /// The API key of the signature vectors.
    pub(in super::super) fn pem() -> String {
        let vectors = include_str!("../../../tests/vectors/oci-http-signature.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let der = BASE64
            .decode(
                vectors["api_private_key_pkcs8_der_base64"]
                    .as_str()
                    .unwrap()
                    .as_bytes(),
            )
            .unwrap();
        format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            BASE64.encode(&der)
        )
    }

    fn entries(pairs: &[(&str, &str)]) -> SecretEntries {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Zeroizing::new(value.as_bytes().to_vec())))
            .collect::<BTreeMap<_, _>>()
    }

    #[test]
    fn single_entries_make_a_key() {
        let pem = pem();
        let pairs = [
            ("user", USER),
            ("tenancy", TENANCY),
            ("fingerprint", FINGERPRINT),
            ("key.pem", &pem),
        ];
        let session = of_secret("s", &entries(&pairs)).unwrap();
        assert_eq!(session.key_id, format!("{TENANCY}/{USER}/{FINGERPRINT}"));
        assert_eq!(session.other_fingerprint, None);
        assert_eq!(session.realm.as_deref(), Some("oc1"));
    }

    #[test]
    fn a_configuration_file_names_an_entry_and_never_a_file() {
        let pem = pem();
        let config = format!(
            "[DEFAULT]\nuser=x\n[PROD]\nuser={USER}\ntenancy={TENANCY}\nfingerprint={FINGERPRINT}\nkey_file=~/.oci/prod.pem\n"
        );
        let pairs = [
            ("config", config.as_str()),
            ("profile", "PROD\n"),
            ("prod.pem", &pem),
        ];
        assert!(of_secret("s", &entries(&pairs)).is_ok());
        let elsewhere = config.replace("~/.oci/prod.pem", "/etc/hostname");
        let pairs = [("config", elsewhere.as_str()), ("profile", "PROD")];
        let fault = of_secret("s", &entries(&pairs)).unwrap_err();
        assert_eq!(fault.reason, Reason::CredentialsMissing);
        let token =
            format!("{config}security_token_file=/var/run/secrets/kubernetes.io/serviceaccount/token\n");
        let pairs = [
            ("config", token.as_str()),
            ("profile", "PROD"),
            ("prod.pem", &pem),
        ];
        assert!(
            of_secret("s", &entries(&pairs))
                .unwrap_err()
                .message
                .contains("security_token_file")
        );
    }

    #[test]
    fn a_foreign_fingerprint_is_noted_and_a_missing_one_made() {
        let pem = pem();
        let other = FINGERPRINT.replace("d2", "00");
        let pairs = [
            ("user", USER),
            ("tenancy", TENANCY),
            ("fingerprint", &other),
            ("key.pem", &pem),
        ];
        let session = of_secret("s", &entries(&pairs)).unwrap();
        assert_eq!(session.other_fingerprint, Some((other, FINGERPRINT.to_owned())));
        let pairs = [("user", USER), ("tenancy", TENANCY), ("key.pem", &pem)];
        assert!(
            of_secret("s", &entries(&pairs))
                .unwrap()
                .key_id
                .ends_with(FINGERPRINT)
        );
    }

    #[test]
    fn what_is_not_the_form_of_a_credential_is_never_sent() {
        let pem = pem();
        for (name, value) in [
            ("user", "ocid1.tenancy.oc1..x"),
            ("user", "hunter2"),
            ("tenancy", "ocid1.tenancy.oc1..x\r\nx-evil: 1"),
            ("fingerprint", "hunter2"),
            ("key.pem", "hunter2"),
        ] {
            let mut pairs = vec![
                ("user", USER),
                ("tenancy", TENANCY),
                ("fingerprint", FINGERPRINT),
                ("key.pem", &pem),
            ];
            pairs.retain(|(own, _)| *own != name);
            pairs.push((name, value));
            let fault = of_secret("s", &entries(&pairs)).unwrap_err();
            assert_eq!(fault.reason, Reason::CredentialsMissing, "{name}");
            assert!(!fault.message.contains("hunter2"), "{}", fault.message);
        }
    }
}
