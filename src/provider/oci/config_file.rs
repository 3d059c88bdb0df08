//! OCI's configuration file as data: text in, values out. It opens no file and reads no environment (security rule S9).
//!
//! Source: Python's `configparser` as `oci/config.py` uses it (no interpolation, `[DEFAULT]` inherited), and
//! `oracle/oci-go-sdk` `common/configuration.go` (the alias `passphrase`). Unlike the Go SDK, a value keeps what
//! follows a second `=`.

use std::{collections::BTreeSet, fmt};

use zeroize::Zeroizing;

use crate::seal::endpoint::printable;

#[cfg(test)]
mod tests;

/// The largest text that is looked at.
pub const MAX_BYTES: usize = 64 * 1024;

/// The profile that is used when none is named, and from which the others inherit.
pub const DEFAULT: &str = "DEFAULT";

/// How many profiles a message lists.
const LISTED: usize = 10;

/// The values of one profile, with what it inherits. Absent and empty are the same: `None`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// OCID of the user.
    pub user: Option<String>,
    /// OCID of the tenancy.
    pub tenancy: Option<String>,
    /// Fingerprint of the API key, as [`super::pem::fingerprint`] writes it.
    pub fingerprint: Option<String>,
    /// Name of the region, such as `eu-frankfurt-1`, or its short code.
    pub region: Option<String>,
    /// Path of the private key, or name of an entry: whoever reads this decides what may be named.
    pub key_file: Option<String>,
    /// Pass phrase of the private key; `passphrase` is the same key.
    pub pass_phrase: Option<Zeroizing<String>>,
    /// Path of a session token, or name of an entry.
    pub security_token_file: Option<String>,
    /// Path of a delegation token, or name of an entry.
    pub delegation_token_file: Option<String>,
    /// How to authenticate, such as `instance_principal`; absent for an API key.
    pub authentication_type: Option<String>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("user", &self.user)
            .field("tenancy", &self.tenancy)
            .field("fingerprint", &self.fingerprint)
            .field("region", &self.region)
            .field("key_file", &self.key_file)
            .field("pass_phrase", &self.pass_phrase.as_ref().map(|_| "[redacted]"))
            .field("security_token_file", &self.security_token_file)
            .field("delegation_token_file", &self.delegation_token_file)
            .field("authentication_type", &self.authentication_type)
            .finish()
    }
}

/// Why a text gives no profile. Names of profiles are shown as [`printable`] lets them; values never are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// More than [`MAX_BYTES`].
    #[error("the OCI configuration is larger than 64 KiB; leave out the profiles that are not used")]
    TooLarge,
    /// No line `[NAME]`.
    #[error(
        "the OCI configuration has no profile; it starts with a line [DEFAULT], and lines such as region = eu-frankfurt-1 follow"
    )]
    Empty,
    /// The number of a line that is nothing of what a line can be, counted from 1.
    #[error("line {0} of the OCI configuration is no [PROFILE], no key = value and no comment; correct it")]
    Line(usize),
    /// The profile is not there.
    #[error("the OCI configuration has no profile {name}; name one that it has ({known}), or add it")]
    NoSuchProfile {
        /// The name that was looked for.
        name: String,
        /// The names that are there, ten at most.
        known: String,
    },
}

/// Reads one profile, `DEFAULT` unless named. Names of profiles are case-sensitive, keys are not.
pub fn profile(text: &str, name: Option<&str>) -> Result<Profile, ConfigError> {
    let config = Config::read(text)?;
    let name = name.unwrap_or(DEFAULT);
    if !config.profiles.contains(&name) {
        return Err(ConfigError::NoSuchProfile {
            name: printable(name),
            known: listed(&config.profiles),
        });
    }
    let value = |keys: &[&str]| config.value(name, keys);
    let owned = |key: &str| value(&[key]).map(str::to_owned);
    Ok(Profile {
        user: owned("user"),
        tenancy: owned("tenancy"),
        fingerprint: owned("fingerprint"),
        region: owned("region"),
        key_file: owned("key_file"),
        pass_phrase: value(&["pass_phrase", "passphrase"]).map(|text| Zeroizing::new(text.to_owned())),
        security_token_file: owned("security_token_file"),
        delegation_token_file: owned("delegation_token_file"),
        authentication_type: owned("authentication_type"),
    })
}

/// The names of at most ten profiles, and how many more there are.
fn listed(profiles: &[&str]) -> String {
    let mut seen = BTreeSet::new();
    let mut names: Vec<String> = profiles
        .iter()
        .filter(|name| seen.insert(**name))
        .take(LISTED)
        .map(|name| printable(name))
        .collect();
    let more = profiles.iter().collect::<BTreeSet<_>>().len() - names.len();
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

/// What a text says; everything borrows from it.
struct Config<'a> {
    /// In the order of the text, as often as they stand there.
    profiles: Vec<&'a str>,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    profile: &'a str,
    key: &'a str,
    value: &'a str,
}

impl<'a> Config<'a> {
    fn read(text: &'a str) -> Result<Self, ConfigError> {
        if text.len() > MAX_BYTES {
            return Err(ConfigError::TooLarge);
        }
        let mut config = Self {
            profiles: Vec::new(),
            entries: Vec::new(),
        };
        let mut current = None;
        // Windows' Notepad puts a byte order mark before the text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (at, raw) in text.lines().enumerate() {
            let line = raw.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(header) = line.strip_prefix('[') {
                let name = header.split_once(']').map_or("", |(name, _)| name.trim());
                if name.is_empty() {
                    return Err(ConfigError::Line(at + 1));
                }
                config.profiles.push(name);
                current = Some(name);
                continue;
            }
            match (line.split_once(['=', ':']), current) {
                (Some((key, value)), Some(profile)) => config.entries.push(Entry {
                    profile,
                    key: key.trim(),
                    value: value.trim(),
                }),
                // An indented line continues the value before it, and none of the values that matter has two lines.
                (None, Some(_)) if raw.starts_with([' ', '\t']) => {}
                (None, Some(_)) => return Err(ConfigError::Line(at + 1)),
                (_, None) => return Err(ConfigError::Empty),
            }
        }
        if config.profiles.is_empty() {
            return Err(ConfigError::Empty);
        }
        Ok(config)
    }

    /// The last value of a key under any of its names, of the profile itself before the one that all inherit from.
    fn value(&self, profile: &str, keys: &[&str]) -> Option<&'a str> {
        [profile, DEFAULT]
            .iter()
            .find_map(|profile| {
                self.entries.iter().rev().find(|entry| {
                    entry.profile == *profile && keys.iter().any(|key| entry.key.eq_ignore_ascii_case(key))
                })
            })
            .map(|entry| entry.value)
            .filter(|value| !value.is_empty())
    }
}
