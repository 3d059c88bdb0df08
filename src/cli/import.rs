//! `autounseal import`: what another tool keeps in, the `keys:` entries to paste out.

mod folder;
mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::{Done, Failure, Output, manifest, output, wrap};
use crate::{seal::model::BOUND_NAMESPACE, yaml};
use folder::Found;
use names::Item;

/// The most keys of a SealConfig.
const MOST_KEYS: usize = 32;

/// The encryption context that bank-vaults sets unless told otherwise.
const CONTEXT: (&str, &str) = ("Tool", "bank-vaults");

/// Bring what another tool keeps, as entries to paste into a SealConfig
///
/// Prints entries for `spec.keys`. No KMS is called and nothing is opened.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// Which tool
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, clap::Subcommand)]
enum From {
    BankVaults(BankVaultsArgs),
}

/// Bring the unseal keys, recovery keys and root token that bank-vaults keeps
///
/// Reads vault-unseal-N, vault-recovery-N and vault-root, with whatever prefix, and prints a key of purpose unseal-share,
/// recovery-share or root-token for each. What lies in the clear is never printed.
///
/// From a folder: the objects of a bucket, as `aws s3 sync` or `oci os object bulk-download` brings them (modes aws-kms-s3
/// and oci). --seal names the SealConfig's seal whose KMS key opens them. Without --seal each folder in it is one bucket, and
/// its name is that of the seal: for several regions, with a copy of each key in each.
///
/// From standard input (-): the Secret of mode k8s, whose values lie in the clear, as `kubectl get secret -o yaml` prints
/// it. Only its name and the names of its entries are used: the operator reads the Secret itself (`import`), which must lie
/// in the SealConfig's namespace, wraps each value, and you delete the Secret.
///
/// Examples:
///
///   aws s3 sync s3://my-vault-unseal ./bucket && autounseal import bank-vaults --from ./bucket --seal aws
///   aws s3 sync s3://vault-eu ./both/eu && aws s3 sync s3://vault-us ./both/us && autounseal import bank-vaults --from ./both
///   oci os object bulk-download --bucket-name vault --download-dir ./bucket && autounseal import bank-vaults --from ./bucket --seal oci
///   kubectl get secret -n vault vault-unseal-keys -o yaml | autounseal import bank-vaults --from -
///
/// Exit codes: 0 printed, 1 nothing that could be brought is there, 2 misuse.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct BankVaultsArgs {
    /// The folder with the bucket's objects, or - for a Secret on standard input
    #[arg(long, value_name = "DIR|-")]
    from: PathBuf,
    /// The seal whose KMS key opens what is there. Default: each folder in DIR is named after one
    #[arg(long, value_name = "NAME")]
    seal: Option<String>,
    /// Only the objects with this prefix, when a bucket holds those of several Vaults
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// The AWS encryption context that bank-vaults was given (--aws-kms-encryption-context). May be repeated. Default:
    /// Tool=bank-vaults
    #[arg(long, value_name = "NAME=VALUE")]
    context: Vec<String>,
    /// How to print the entries; text is YAML
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(args: &ImportArgs) -> Done {
    let From::BankVaults(args) = &args.from;
    let keys = if args.from == Path::new("-") {
        let of_a_folder = args.seal.is_some() || !args.context.is_empty();
        if of_a_folder {
            return Err(Failure::Misuse(
                "--seal and --context are for a folder; a Secret's values are not wrapped yet".to_owned(),
            ));
        }
        of_secret(args.prefix.as_deref())?
    } else {
        let context = context(&args.context)?;
        let found = folder::read(&args.from, |path| Item::read(path).is_some())?;
        of_objects(found, args.seal.as_deref(), args.prefix.as_deref(), &context)?
    };
    if keys.is_empty() {
        return Err(Failure::No(format!(
            "{} holds no vault-unseal-N, vault-recovery-N or vault-root{}",
            args.from.display(),
            match &args.prefix {
                Some(prefix) => format!(" with prefix {prefix:?}"),
                None => String::new(),
            }
        )));
    }
    if keys.len() > MOST_KEYS {
        output::note(&format!(
            "these are {} keys, and a SealConfig takes {MOST_KEYS}; paste as many shares as the threshold asks for, and a few more",
            keys.len()
        ));
    }
    if let Some(missing) = gap(&keys) {
        output::note(&format!(
            "{missing} is missing between others; is the folder complete?"
        ));
    }
    let report = json!({"keys": keys.into_values().collect::<Vec<_>>()});
    match args.output {
        Output::Json => output::json(&report),
        Output::Text => {
            let body = yaml::print(&report).map_err(|error| Failure::No(error.to_string()))?;
            output::report(&format!("# Paste into spec of the SealConfig:\n{body}"));
        }
    }
    Ok(())
}

type Keys = BTreeMap<Item, Value>;

fn context(pairs: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    if pairs.is_empty() {
        return Ok([(CONTEXT.0.to_owned(), CONTEXT.1.to_owned())].into());
    }
    let mut context = BTreeMap::new();
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(Failure::Misuse("--context takes NAME=VALUE".to_owned()));
        };
        if name.starts_with("autounseal.dev/") && name != BOUND_NAMESPACE {
            return Err(Failure::Misuse(
                "context names under autounseal.dev/ are the operator's own".to_owned(),
            ));
        }
        if context.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::Misuse(format!(
                "two --context are named {name:?}; leave one out"
            )));
        }
    }
    if context.len() > 8 {
        return Err(Failure::Misuse("at most 8 --context are taken".to_owned()));
    }
    Ok(context)
}

/// The objects of one bucket, or of one for each seal.
fn of_objects(
    found: Vec<Found>,
    seal: Option<&str>,
    prefix: Option<&str>,
    context: &BTreeMap<String, String>,
) -> Result<Keys, Failure> {
    let mut buckets: BTreeMap<String, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    for Found { path, bytes } in found {
        let (seal, name) = match seal {
            Some(seal) => (seal, path.as_str()),
            None => path.split_once('/').ok_or_else(|| {
                Failure::Misuse(format!(
                    "{path} lies in the folder itself: name the seal that opens it with --seal, or put each bucket's objects \
                     into a folder with the name of its seal"
                ))
            })?,
        };
        wrap::check_name(seal).map_err(|_| {
            Failure::Misuse(format!(
                "{seal:?} is no name of a seal (small letters, digits and hyphens); rename the folder, or use --seal"
            ))
        })?;
        let name = name.to_owned();
        buckets.entry(seal.to_owned()).or_default().push((name, bytes));
    }
    let mut keys = Keys::new();
    for (seal, objects) in buckets {
        for (item, bytes) in of_one_prefix(objects, prefix, &format!("the objects for seal {seal}"))? {
            let mut copy = json!({"seal": seal, "format": "kms"});
            match names::Value::read(&bytes) {
                names::Value::Aws(ciphertext) => {
                    copy["context"] = json!(context);
                    copy["inline"] = BASE64.encode(&ciphertext).into();
                }
                names::Value::Oci(text) => copy["inline"] = text.into(),
                names::Value::Clear => {
                    return Err(Failure::No(format!(
                        "{item} for seal {seal} is no ciphertext: it lies in the clear, as bank-vaults keeps it in a Secret or \
                         with --aws-s3-sse-algo. Put it into a Secret of the SealConfig's namespace, and pipe that into \
                         `autounseal import bank-vaults --from -`"
                    )));
                }
            }
            let key = keys.entry(item).or_insert_with(|| key(item));
            if let Some(copies) = key
                .as_object_mut()
                .map(|key| key.entry("wrapped").or_insert_with(|| json!([])))
                .and_then(Value::as_array_mut)
            {
                copies.push(copy);
            }
        }
    }
    Ok(keys)
}

fn key(item: Item) -> Value {
    json!({"name": item.to_string(), "purpose": item.purpose()})
}

/// What of several Vaults' objects is meant.
fn of_one_prefix<T>(
    objects: Vec<(String, T)>,
    prefix: Option<&str>,
    what: &str,
) -> Result<Vec<(Item, T)>, Failure> {
    // OCI's objects have a slash after the prefix, and one before the name when there is none.
    let plain = |prefix: &str| prefix.trim_matches('/').to_owned();
    let mut prefixes = BTreeSet::new();
    let mut items = Vec::new();
    for (name, value) in objects {
        let Some((own, item)) = Item::read(&name) else {
            continue;
        };
        if prefix.is_none_or(|prefix| plain(prefix) == plain(own)) {
            prefixes.insert(own.to_owned());
            items.push((item, value));
        }
    }
    if prefixes.len() > 1 {
        let list: Vec<String> = prefixes.iter().map(|prefix| format!("{prefix:?}")).collect();
        return Err(Failure::Misuse(format!(
            "{what} have several prefixes ({}), so they are of several Vaults; choose one with --prefix",
            list.join(", ")
        )));
    }
    Ok(items)
}

/// The first that is missing before another of its kind.
fn gap(keys: &Keys) -> Option<Item> {
    let kinds: [fn(u32) -> Item; 2] = [Item::Unseal, Item::Recovery];
    kinds.into_iter().find_map(|kind| {
        let of_kind = keys.keys().filter(|item| match item {
            Item::Unseal(number) | Item::Recovery(number) => **item == kind(*number),
            Item::Root => false,
        });
        (0..)
            .zip(of_kind)
            .find(|(number, item)| **item != kind(*number))
            .map(|(number, _)| kind(number))
    })
}

/// The Secret on standard input.
fn of_secret(prefix: Option<&str>) -> Result<Keys, Failure> {
    let text = Zeroizing::new(manifest::read_text(Path::new("-"))?);
    let mut objects = manifest::objects("-", &text)?;
    let keys = match objects.as_slice() {
        [(_, object)] if object.kind() == "Secret" => of_entries(&object.value, prefix),
        _ => Err(Failure::No(
            "standard input must be one Secret: kubectl get secret -n NAMESPACE NAME -o yaml".to_owned(),
        )),
    };
    for (_, object) in &mut objects {
        wipe(&mut object.value);
    }
    keys
}

fn of_entries(secret: &Value, prefix: Option<&str>) -> Result<Keys, Failure> {
    let name = secret["metadata"]["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::No("the Secret on standard input has no name".to_owned()));
    }
    let entries = ["data", "stringData"]
        .into_iter()
        .filter_map(|field| secret[field].as_object());
    let entries: Vec<(String, String)> = entries
        .flat_map(|map| map.keys().map(|entry| (entry.clone(), entry.clone())))
        .collect();
    let items = of_one_prefix(entries, prefix, "the Secret's entries")?;
    Ok(items
        .into_iter()
        .map(|(item, entry)| {
            let mut key = key(item);
            key["import"] = json!({"secretKeyRef": {"name": name, "key": entry}});
            (item, key)
        })
        .collect())
}

/// Nothing of the Secret stays behind.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aws(number: u8) -> Vec<u8> {
        let mut bytes = vec![number; 120];
        bytes[0] = 1;
        bytes
    }

    fn found(paths: &[(&str, Vec<u8>)]) -> Vec<Found> {
        let found = |(path, bytes): &(&str, Vec<u8>)| Found {
            path: (*path).to_owned(),
            bytes: bytes.clone(),
        };
        paths.iter().map(found).collect()
    }

    fn objects(paths: &[(&str, Vec<u8>)], seal: Option<&str>, prefix: Option<&str>) -> Result<Keys, Failure> {
        of_objects(found(paths), seal, prefix, &context(&[]).unwrap())
    }

    #[test]
    fn a_bucket_becomes_keys_of_one_seal() {
        let text = BASE64.encode(&aws(3));
        let paths = [
            ("vault-unseal-0", aws(0)),
            ("vault-recovery-1", text.clone().into_bytes()),
            ("vault-root", aws(9)),
        ];
        let keys = objects(&paths, Some("a"), None).unwrap();
        assert_eq!(
            keys[&Item::Unseal(0)],
            json!({"name": "vault-unseal-0", "purpose": "unseal-share", "wrapped": [
                {"seal": "a", "format": "kms", "context": {"Tool": "bank-vaults"}, "inline": BASE64.encode(&aws(0))}]})
        );
        assert_eq!(
            keys[&Item::Recovery(1)],
            json!({"name": "vault-recovery-1", "purpose": "recovery-share", "wrapped": [
                {"seal": "a", "format": "kms", "inline": text}]})
        );
        assert_eq!(keys[&Item::Root]["purpose"], "root-token");
    }

    #[test]
    fn several_buckets_become_copies_of_one_key() {
        let paths = [
            ("eu/vault-unseal-0", aws(0)),
            ("us/prod/vault-unseal-0", aws(1)),
            ("us/prod/vault-unseal-1", aws(2)),
        ];
        let keys = objects(&paths, None, None).unwrap();
        let seals = |item| {
            let copies = keys[&item]["wrapped"].as_array().unwrap();
            copies
                .iter()
                .map(|copy| copy["seal"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(seals(Item::Unseal(0)), ["eu", "us"]);
        assert_eq!(seals(Item::Unseal(1)), ["us"]);
        // With a seal named, folders are the prefix.
        let keys = objects(&paths[1..], Some("us"), None).unwrap();
        assert_eq!(keys.len(), 2);
    }

    #[test]
    fn what_is_not_sure_is_asked_for() {
        let misuse = |paths: &[(&str, Vec<u8>)], seal| {
            assert!(
                matches!(objects(paths, seal, None), Err(Failure::Misuse(_))),
                "{paths:?}"
            );
        };
        misuse(&[("vault-unseal-0", aws(0))], None);
        misuse(&[("EU west/vault-unseal-0", aws(0))], None);
        let two = [("a-vault-unseal-0", aws(0)), ("b-vault-unseal-0", aws(1))];
        misuse(&two, Some("s"));
        let one = objects(&two, Some("s"), Some("b-")).unwrap();
        assert_eq!(one.len(), 1);
        let slashes = [("prod/vault-unseal-0", aws(0))];
        for prefix in ["prod", "prod/", "/prod"] {
            assert_eq!(objects(&slashes, Some("s"), Some(prefix)).unwrap().len(), 1);
        }
        assert!(objects(&slashes, Some("s"), Some("")).unwrap().is_empty());
    }

    #[test]
    fn what_lies_in_the_clear_is_not_printed() {
        let share = "ab".repeat(33);
        let paths = [("vault-unseal-0", share.clone().into_bytes())];
        let Err(Failure::No(message)) = objects(&paths, Some("a"), None) else {
            panic!("a share in the clear was taken");
        };
        assert!(
            message.contains("in the clear") && !message.contains(&share),
            "{message}"
        );
    }

    #[test]
    fn of_a_secret_only_names_are_used() {
        let secret = json!({"kind": "Secret", "metadata": {"name": "vault-unseal-keys"},
            "data": {"vault-unseal-0": "c2VjcmV0", "vault-root": "c2VjcmV0", "vault-test": "x"}});
        let keys = of_entries(&secret, None).unwrap();
        assert_eq!(
            keys.values().cloned().collect::<Value>(),
            json!([
                {"name": "vault-unseal-0", "purpose": "unseal-share",
                    "import": {"secretKeyRef": {"name": "vault-unseal-keys", "key": "vault-unseal-0"}}},
                {"name": "vault-root", "purpose": "root-token",
                    "import": {"secretKeyRef": {"name": "vault-unseal-keys", "key": "vault-root"}}},
            ])
        );
        let mut secret = secret;
        wipe(&mut secret);
        assert!(!secret.to_string().contains("c2VjcmV0"));
    }

    #[test]
    fn gaps_are_told() {
        let of = |items: &[Item]| gap(&items.iter().map(|item| (*item, Value::Null)).collect());
        assert_eq!(of(&[Item::Unseal(0), Item::Unseal(2)]), Some(Item::Unseal(1)));
        assert_eq!(of(&[Item::Recovery(1), Item::Root]), Some(Item::Recovery(0)));
        assert_eq!(
            of(&[Item::Unseal(0), Item::Unseal(1), Item::Recovery(0), Item::Root]),
            None
        );
    }

    #[test]
    fn a_context_of_bank_vaults_own_replaces_the_default() {
        let read = |pairs: &[&str]| context(&pairs.iter().map(|&pair| pair.to_owned()).collect::<Vec<_>>());
        assert_eq!(read(&[]).unwrap()["Tool"], "bank-vaults");
        let own = read(&["a=b", "c=d=e"]).unwrap();
        assert_eq!((own.len(), own["c"].as_str()), (2, "d=e"));
        for wrong in [&["a"][..], &["=b"], &["a=1", "a=2"], &["autounseal.dev/x=1"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
